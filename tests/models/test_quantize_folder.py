from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from graftlm.errors import ModelError, ResourceError
from graftlm.frozen.linear import FrozenLinear
from graftlm.models import load_model, quantize_folder
from graftlm.models import shard_writer as rewriting
from tests.oracles.model_families import FAMILIES, tiny_model

IDS = torch.arange(1, 25).view(2, 12)
QUANTIZABLE = [family for family in FAMILIES if family != "falcon"]

pytestmark = pytest.mark.filterwarnings(
    # bitsandbytes' own: it asks for a faster CPU kernel, and compares shapes while tracing
    "ignore::UserWarning:bitsandbytes",
    "ignore::FutureWarning:bitsandbytes",
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    """One plain folder a family; shards of 60 KB for the Mixtral."""
    root = tmp_path_factory.mktemp("plain")
    for number, family in enumerate(FAMILIES):
        # In 16 bits, rounding decides which experts a Mixtral asks, and each CPU rounds its way.
        narrow = number % 2 and family != "mixtral"
        model = tiny_model(family, torch.bfloat16 if narrow else torch.float32)
        model.save_pretrained(
            root / family, max_shard_size="60KB" if family == "mixtral" else "4GB"
        )
        tiny_tokenizer.save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


def logits(model: nn.Module) -> torch.Tensor:
    """On bitsandbytes' plain path: its AVX512-BF16 kernel rounds, and wants multiples of 32."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def assert_same_logits(left: nn.Module, right: nn.Module, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(logits(left), logits(right), rtol=tolerance, atol=tolerance)


def nf4_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        if isinstance(module, FrozenLinear)
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize("family", [name for name in QUANTIZABLE if name != "mixtral"])
def test_bitsandbytes_reads_our_folder_with_the_same_logits(
    family: str, plain: Any, tmp_path: Path
) -> None:
    report = quantize_folder(plain[family], tmp_path / "nf4")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4")
    ours, _ = load_model(tmp_path / "nf4")
    count = sum(type(module).__name__ == "Linear4bit" for module in theirs.modules())
    assert report["quantized_layers"] == count > 0
    assert sum(isinstance(module, FrozenLinear) for module in ours.modules()) == count
    assert_same_logits(ours, theirs, theirs.dtype)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mixtral"])
def test_our_folder_loads_like_the_model_quantized_while_loading(
    family: str, double_quant: bool, plain: Any, tmp_path: Path
) -> None:
    quantize_folder(plain[family], tmp_path / "nf4", block_size=128, double_quant=double_quant)
    mapped, _ = load_model(tmp_path / "nf4")
    direct, _ = load_model(plain[family], block_size=128, double_quant=double_quant)
    expected = nf4_tensors(direct)
    found = nf4_tensors(mapped)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(logits(mapped), logits(direct))


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "opt", "mixtral"])
def test_folder_written_by_transformers_and_bitsandbytes_loads(
    family: str, double_quant: bool, plain: Any, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        plain[family], quantization_config=settings, dtype=torch.float32
    )
    theirs.save_pretrained(tmp_path / "theirs")
    tiny_tokenizer.save_pretrained(tmp_path / "theirs")
    ours, _ = load_model(tmp_path / "theirs")
    assert any(isinstance(module, FrozenLinear) for module in ours.modules())
    assert_same_logits(ours, theirs, torch.float32)


@pytest.mark.parametrize("kept", [["up_proj"], ["k_proj", "lm_head"], ["model.layers.1"]])
def test_layers_that_a_folder_keeps_in_16_bits_stay_as_they_are(
    kept: list[str], plain: Any, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=kept,
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        plain["llama"], quantization_config=settings, dtype=torch.float32
    )
    theirs.save_pretrained(tmp_path / "theirs")
    tiny_tokenizer.save_pretrained(tmp_path / "theirs")
    dense = {name for name, module in theirs.named_modules() if type(module) is nn.Linear}
    assert any(part in name for name in dense for part in kept)
    for quantize in ("nf4", "int8", None):
        ours, _ = load_model(tmp_path / "theirs", quantize=quantize)
        assert {n for n, m in ours.named_modules() if isinstance(m, nn.Linear)} == dense
        assert_same_logits(ours, theirs, torch.float32)


def test_nf4_folder_opens_as_views_of_the_file(plain: Any, tmp_path: Path) -> None:
    quantize_folder(plain["llama"], tmp_path / "nf4")
    model, _ = load_model(tmp_path / "nf4")
    size = (tmp_path / "nf4/model.safetensors").stat().st_size
    layer = model.model.layers[0].mlp.up_proj
    for tensor in (layer.codes, layer.absmax, layer.nested_absmax, model.model.embed_tokens.weight):
        assert tensor.untyped_storage().nbytes() < size  # a slice of the map, not a copy of it
    start = layer.codes.data_ptr() - layer.absmax.data_ptr()
    assert abs(start) < size  # and both are slices of one map


def test_writing_to_a_mapped_weight_leaves_the_file_alone(plain: Any, tmp_path: Path) -> None:
    quantize_folder(plain["llama"], tmp_path / "nf4")
    before = (tmp_path / "nf4/model.safetensors").read_bytes()
    model, _ = load_model(tmp_path / "nf4")
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(1)
        model.model.layers[0].mlp.up_proj.codes.zero_()
    assert (tmp_path / "nf4/model.safetensors").read_bytes() == before


def test_many_shards_hold_the_same_tensors_as_one(
    plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize_folder(plain["llama"], tmp_path / "one")
    monkeypatch.setattr(rewriting, "SHARD_BYTES", 20_000)
    report = quantize_folder(plain["llama"], tmp_path / "many")
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == report["bytes"]
    single = load_file(tmp_path / "one/model.safetensors")
    for shard in shards:
        for name, tensor in load_file(shard).items():
            assert index["weight_map"].pop(name) == shard.name
            assert torch.equal(tensor, single.pop(name))
    assert not single
    assert not index["weight_map"]
    many, _ = load_model(tmp_path / "many")
    one, _ = load_model(tmp_path / "one")
    assert torch.equal(logits(many), logits(one))


def test_companion_files_come_along(plain: Any, tmp_path: Path) -> None:
    source = shutil.copytree(plain["llama"], tmp_path / "source")
    (source / "LICENSE.txt").write_text("terms")
    quantize_folder(source, tmp_path / "nf4")
    names = {path.name for path in (tmp_path / "nf4").iterdir()}
    assert names == {path.name for path in source.iterdir()}
    config = json.loads((tmp_path / "nf4/config.json").read_text())
    assert config.pop("quantization_config")["llm_int8_skip_modules"] == ["lm_head"]
    theta = config.pop("rope_theta")  # its name in transformers 4
    assert config == json.loads((source / "config.json").read_text())
    assert theta == config["rope_parameters"]["rope_theta"]


def test_family_that_bitsandbytes_cannot_hold_is_refused(plain: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="falcon"):
        quantize_folder(plain["falcon"], tmp_path / "nf4")
    assert not (tmp_path / "nf4").exists()


def test_quantized_folder_is_not_quantized_again(plain: Any, tmp_path: Path) -> None:
    quantize_folder(plain["llama"], tmp_path / "nf4")
    with pytest.raises(ModelError, match="quantised already"):
        quantize_folder(tmp_path / "nf4", tmp_path / "again")


def test_not_enough_disk_is_found_before_anything_is_written(
    plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="Free some space"):
        quantize_folder(plain["llama"], tmp_path / "nf4")
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_not_overwritten(plain: Any, tmp_path: Path) -> None:
    (tmp_path / "nf4").mkdir()
    (tmp_path / "nf4/mine").write_text("keep")
    with pytest.raises(ResourceError, match="already exists"):
        quantize_folder(plain["llama"], tmp_path / "nf4")
    assert (tmp_path / "nf4/mine").read_text() == "keep"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes fp4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ],
)
def test_other_quantizations_are_refused_by_name(
    settings: Any, found: str, plain: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(plain["llama"], tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(ModelError, match=found):
        load_model(folder)


def test_nf4_folder_with_a_lost_part_is_refused(plain: Any, tmp_path: Path) -> None:
    quantize_folder(plain["llama"], tmp_path / "nf4")
    file = tmp_path / "nf4/model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight.absmax"]
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"up_proj\.weight\.absmax"):
        load_model(tmp_path / "nf4")


def test_nf4_weight_of_another_shape_is_refused(plain: Any, tmp_path: Path) -> None:
    quantize_folder(plain["llama"], tmp_path / "nf4")
    config = json.loads((tmp_path / "nf4/config.json").read_text())
    config["intermediate_size"] = 96
    (tmp_path / "nf4/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="different models"):
        load_model(tmp_path / "nf4")

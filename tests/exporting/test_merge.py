from __future__ import annotations

import json
import shutil
import weakref
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftlm.adapters import add_lora, lora_parameters
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig, ModelConfig, RunConfig
from graftlm.errors import ArtifactError, ConfigError, ResourceError
from graftlm.exporting.merge import merge_to_folder
from graftlm.exporting.merge_plan import prepare_merge
from graftlm.frozen.linear import FrozenLinear
from graftlm.models import load_model
from graftlm.models.safetensors_writer import SafetensorsWriter
from graftlm.models.shard_writer import ShardWriter
from tests.oracles.model_families import FAMILIES, tiny_model

IDS = torch.arange(1, 25).view(2, 12)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for family in FAMILIES:
        tiny_model(family).save_pretrained(root / family, max_shard_size="200KB")
        tiny_tokenizer.save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def trained(folder: Path, base: Path, targets: str | tuple[str, ...] = "all-linear") -> Path:
    """An adapter for the model at ``base`` that changes what it says."""
    model, _ = load_model(base, quantize=None)
    add_lora(model, LoRAConfig(rank=4, alpha=8, targets=targets))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    save_adapter(model, folder, base_name=str(base))
    return folder


def as_run(folder: Path, base: Path, **model: Any) -> Path:
    trained(folder / "adapter", base)
    settings = RunConfig(method="qlora", model=ModelConfig(name=str(base), **model))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (folder / "provenance.json").write_text("{}")
    return folder


def on_base(base: Path, adapter: Path, **loading: Any) -> torch.Tensor:
    model, _ = load_model(base, **({"quantize": None} | loading))
    load_adapter(model, adapter)
    return logits(model)


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


def plain(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("onto", ["original", "nf4"])
def test_merged_logits_equal_the_adapter_on_its_base(
    family: str, onto: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter = trained(tmp_path / "adapter", bases[family])
    report = merge_to_folder(adapter, tmp_path / "out", onto=onto, max_shard_bytes=150_000)
    assert report["onto"] == onto
    assert report["base"] == str(bases[family])
    expected = on_base(bases[family], adapter, quantize="nf4" if onto == "nf4" else None)
    torch.testing.assert_close(logits(plain(tmp_path / "out")), expected, rtol=0, atol=5e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("ab").input_ids == [256, 64, 65]


@pytest.mark.parametrize("block_size", [64, 128])
def test_a_qlora_run_is_merged_onto_exactly_what_it_trained(
    block_size: int, bases: dict[str, Path], tmp_path: Path
) -> None:
    run = as_run(tmp_path / "run", bases["llama"], block_size=block_size, double_quant=False)
    report = merge_to_folder(run, tmp_path / "out")
    assert report["onto"] == "nf4"
    expected = on_base(
        bases["llama"], run, quantize="nf4", block_size=block_size, double_quant=False
    )
    merged = logits(plain(tmp_path / "out"))
    torch.testing.assert_close(merged, expected, rtol=0, atol=5e-5)
    assert (merged - on_base(bases["llama"], run)).abs().max() > 1e-2


def test_layers_that_were_in_4_bits_but_not_adapted_are_written_dequantised(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter = trained(tmp_path / "adapter", bases["llama"], ("q_proj",))
    merge_to_folder(adapter, tmp_path / "out", onto="nf4")
    expected = on_base(bases["llama"], adapter, quantize="nf4")
    torch.testing.assert_close(logits(plain(tmp_path / "out")), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("targets", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")])
@pytest.mark.parametrize("family", ["llama-tied", "gemma3"])
def test_one_end_of_a_tie_is_merged_and_the_two_part(
    family: str, targets: tuple[str, ...], bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter = trained(tmp_path / "adapter", bases[family], targets)
    report = merge_to_folder(adapter, tmp_path / "out")
    assert report["untied"]
    expected = on_base(bases[family], adapter)
    torch.testing.assert_close(logits(plain(tmp_path / "out")), expected, rtol=0, atol=5e-5)
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_checkpoint_without_the_models_prefix_is_merged_under_its_own_names(
    family: str, bases: dict[str, Path], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    model = tiny_model("gpt2" if family == "gpt2" else "llama-tied")
    base = tmp_path / "base"
    model.base_model.save_pretrained(base)
    config = json.loads((base / "config.json").read_text()) | {"architectures": None}
    (base / "config.json").write_text(json.dumps(config))
    tiny_tokenizer.save_pretrained(base)
    adapter = trained(tmp_path / "adapter", base)
    merge_to_folder(adapter, tmp_path / "out", onto="original")
    torch.testing.assert_close(
        logits(plain(tmp_path / "out")), on_base(base, adapter), rtol=0, atol=5e-5
    )
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == load_file(base / "model.safetensors").keys()


def test_a_base_that_is_in_nf4_already_is_merged_dequantised(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    from graftlm.models.quantize import quantize_folder

    quantize_folder(bases["llama"], tmp_path / "nf4")
    adapter = trained(tmp_path / "adapter", bases["llama"])
    report = merge_to_folder(adapter, tmp_path / "out", base=str(tmp_path / "nf4"))
    assert report["onto"] == "nf4"
    model, _ = load_model(tmp_path / "nf4")
    assert any(isinstance(module, FrozenLinear) for module in model.modules())
    load_adapter(model, adapter)
    merged = plain(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=5e-5)
    assert "quantization_config" not in config_of(tmp_path / "out")
    with pytest.raises(ConfigError, match="holds weights in nf4 only"):
        merge_to_folder(adapter, tmp_path / "no", base=str(tmp_path / "nf4"), onto="original")


def test_bfloat16_is_rounded_once_and_float32_on_request_is_exact(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    base = tmp_path / "base"
    tiny_model("llama", torch.bfloat16).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    adapter = trained(tmp_path / "adapter", base)
    rounded = merge_to_folder(adapter, tmp_path / "rounded")
    assert 0 < rounded["largest_rounding"] < 2**-7
    assert plain(tmp_path / "rounded").dtype == torch.bfloat16
    exact = merge_to_folder(adapter, tmp_path / "exact", dtype=torch.float32)
    assert exact["largest_rounding"] == 0
    merged = plain(tmp_path / "exact")
    assert merged.dtype == torch.float32
    expected = on_base(base, adapter, dtype="float32")
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=5e-5)


def test_untouched_weights_are_copied_to_the_bit(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", bases["mixtral"], ("q_proj",))
    merge_to_folder(adapter, tmp_path / "out", max_shard_bytes=100_000)
    before = {k: t for f in bases["mixtral"].glob("*.safetensors") for k, t in load_file(f).items()}
    after = {
        k: t for f in (tmp_path / "out").glob("*.safetensors") for k, t in load_file(f).items()
    }
    assert after.keys() == before.keys()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == {f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)}


def test_no_more_than_a_tensor_is_held(bases: dict[str, Path], tmp_path: Path) -> None:
    merge = prepare_merge(trained(tmp_path / "adapter", bases["llama"]), bases["llama"], "llama")
    before: list[weakref.ref[torch.Tensor]] = []
    with ShardWriter(tmp_path) as writer:
        for key, tensor in merge.tensors():
            writer.add(key, tensor)
            before.append(weakref.ref(tensor))
            del tensor
            assert sum(ref() is not None for ref in before) <= 1  # one may be the base's own
    assert len(before) > 20


def test_a_small_disk_is_found_out_first(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(tmp_path / "adapter", bases["llama"])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(ResourceError, match="Merging needs"):
        merge_to_folder(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_nothing_behind(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(tmp_path / "adapter", bases["llama"])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SafetensorsWriter, "add", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        merge_to_folder(adapter, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_requests_that_cannot_be_met_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", bases["llama"])
    with pytest.raises(ConfigError, match=r"expected original or .*int8 or nf4"):
        merge_to_folder(adapter, tmp_path / "out", onto="16bit")
    with pytest.raises(ArtifactError, match="does not fit the model"):
        merge_to_folder(adapter, tmp_path / "out", base=str(bases["gpt2"]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    with pytest.raises(ResourceError, match="not an empty folder"):
        merge_to_folder(adapter, tmp_path / "out")

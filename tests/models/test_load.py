from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from graftlm._compat import experts
from graftlm.errors import ModelError, RequestError
from graftlm.frozen.linear import FrozenLinear
from graftlm.kernels import nf4
from graftlm.models import load_model, save_model
from graftlm.models.experts import expert_weights
from graftlm.models.fused import OutputLinear
from tests.oracles.model_families import FAMILIES, tiny_model
from tests.oracles.tiny_architectures import tiny_model as tiny_architecture

IDS = torch.arange(1, 25).view(2, 12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    """One saved model a family; every second one in bfloat16, the Mixtral in several shards."""
    root = tmp_path_factory.mktemp("families")
    for number, family in enumerate(FAMILIES):
        # In 16 bits, rounding decides which experts a Mixtral asks, and each CPU rounds its way.
        narrow = number % 2 and family != "mixtral"
        model = tiny_model(family, torch.bfloat16 if narrow else torch.float32)
        shard = "60KB" if family == "mixtral" else "4GB"
        model.save_pretrained(root / family, max_shard_size=shard)
        tiny_tokenizer.save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_unquantized_model_gives_transformers_logits(family: str, folders: Any) -> None:
    model, _ = load_model(folders[family], quantize=None)
    expected = AutoModelForCausalLM.from_pretrained(folders[family])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[expected.dtype]
    torch.testing.assert_close(logits(model), logits(expected), rtol=tolerance, atol=tolerance)
    plain, _ = load_model(folders[family], quantize=None, replacements=())
    assert torch.equal(logits(plain), logits(expected))
    assert {type(module) for module in plain.modules()} == {type(m) for m in expected.modules()}
    assert not model.training
    assert {n: (t.shape, t.dtype) for n, t in model.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in expected.state_dict().items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_nf4_model_is_the_plain_one_with_dequantized_weights(family: str, folders: Any) -> None:
    model, _ = load_model(folders[family], quantize="nf4")
    expected = AutoModelForCausalLM.from_pretrained(folders[family])
    head = expected.get_output_embeddings()
    changed = set()
    for name, layer in expected.named_modules():
        if isinstance(layer, (nn.Linear, Conv1D)) and layer is not head:
            weight = layer.weight.data
            out_by_in = weight.t().contiguous() if isinstance(layer, Conv1D) else weight
            lossy = nf4.dequantize(nf4.quantize(out_by_in))
            layer.weight.data = lossy.t().contiguous() if isinstance(layer, Conv1D) else lossy
            changed.add(name)
    for weight in expert_weights(expected).values():
        for one in getattr(weight.module, weight.leaf).data:
            one.copy_(nf4.dequantize(nf4.quantize(one)))
    found = {name for name, layer in model.named_modules() if isinstance(layer, FrozenLinear)}
    assert found == changed
    assert found
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[expected.dtype]
    torch.testing.assert_close(logits(model), logits(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("quantize", ["nf4", None])
@pytest.mark.parametrize("family", ["llama-tied", "gemma3", "gpt2", "opt"])
def test_tied_embeddings_stay_tied_and_unquantized(
    family: str, quantize: Any, folders: Any
) -> None:
    model, _ = load_model(folders[family], quantize=quantize)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert type(head) is OutputLinear
    assert head.weight is table.weight


def test_untied_head_stays_untied(folders: Any) -> None:
    model, _ = load_model(folders["llama"], quantize="nf4")
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


def test_experts_of_an_unknown_layout_stay_unquantized_and_are_reported(
    tmp_path: Path, tiny_tokenizer: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(experts.OWN_CODE, "Llama4TextExperts")
    tiny_architecture("llama4_text").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with caplog.at_level("WARNING", logger="graftlm"):
        model, _ = load_model(tmp_path, quantize="nf4")
    fused = [name for name, p in model.named_parameters() if p.dim() == 3]
    assert fused
    assert f"{len(fused)} matrices" in caplog.text
    assert "experts.gate_up_proj (4)" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_converts_what_is_not_quantized(dtype: str, folders: Any) -> None:
    model, _ = load_model(folders["qwen3"], quantize="nf4", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    stored = {b.dtype for m in model.modules() if isinstance(m, FrozenLinear) for b in m.buffers()}
    assert stored == {torch.uint8, torch.float32}


def test_auto_dtype_without_one_in_the_config_is_that_of_the_weights(
    folders: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["qwen3"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = load_model(folder, quantize=None)
    expected = next(iter(load_file(folder / "model.safetensors").values())).dtype
    assert model.dtype == expected


def test_block_size_and_single_quantization_reach_the_layers(folders: Any) -> None:
    model, _ = load_model(folders["llama"], quantize="nf4", block_size=128, double_quant=False)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.frozen.stored.block_size == 128
    assert not layer.frozen.stored.double_quantized


def test_model_bears_no_trace_of_the_loader(folders: Any, tmp_path: Path) -> None:
    model, _ = load_model(folders["llama"], quantize=None)
    assert not hasattr(model, "hf_quantizer")
    assert not hasattr(model.config, "quantization_config")
    assert not hasattr(model.config, "_is_quantized")
    assert not model.is_quantized
    model.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again/model.safetensors")
    for name, tensor in load_file(folders["llama"] / "model.safetensors").items():
        assert torch.equal(saved[name], tensor)


def change_weights(folder: Path, target: Path, change: Any) -> Path:
    copy = shutil.copytree(folder, target)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("quantize", ["nf4", None])
@pytest.mark.parametrize(
    "key", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_missing_weight_is_an_error_that_names_it(
    key: str, quantize: Any, folders: Any, tmp_path: Path
) -> None:
    folder = change_weights(folders["llama"], tmp_path / "m", lambda tensors: tensors.pop(key))
    with pytest.raises(ModelError, match=key):
        load_model(folder, quantize=quantize)


def test_unexpected_weight_is_an_error_that_names_it(folders: Any, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(3)

    folder = change_weights(folders["llama"], tmp_path / "m", change)
    with pytest.raises(ModelError, match=r"no place for: model\.layers\.7"):
        load_model(folder)


@pytest.mark.parametrize("quantize", ["nf4", None])
@pytest.mark.parametrize("key", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_weight_of_another_shape_is_an_error(
    key: str, quantize: Any, folders: Any, tmp_path: Path
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key] = tensors[key][:-1].contiguous()

    folder = change_weights(folders["llama"], tmp_path / "m", change)
    with pytest.raises(ModelError, match=key):
        load_model(folder, quantize=quantize)


def test_not_a_number_in_a_weight_is_an_error_that_names_it(folders: Any, tmp_path: Path) -> None:
    key = "model.layers.0.mlp.down_proj.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key][3, 3] = float("nan")

    folder = change_weights(folders["llama"], tmp_path / "m", change)
    with pytest.raises(ModelError, match=key):
        load_model(folder, quantize="nf4")


def test_folder_without_tokenizer_is_an_error(folders: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(folder)


def test_unknown_architecture_is_an_error(folders: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ModelError, match="no-such-model"):
        load_model(folder)


@pytest.mark.parametrize("bad", [{"quantize": "int4"}, {"dtype": "float8"}, {"block_size": 63}])
def test_bad_arguments_are_refused(bad: Any, folders: Any) -> None:
    with pytest.raises(RequestError, match=str(next(iter(bad.values())))):
        load_model(folders["llama"], **bad)


def test_no_progress_bar_of_transformers_is_drawn(
    folders: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    AutoModelForCausalLM.from_pretrained(folders["llama"])
    assert "Loading weights" in capfd.readouterr().err  # so the bar would be seen
    model, tokenizer = load_model(folders["llama"], quantize=None)
    save_model(model, tokenizer, tmp_path / "saved")
    load_model(folders["llama"])
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()

"""Folders whose experts are in a weight format, and experts read tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from graftlm.errors import ModelError
from graftlm.frozen.experts import FrozenExperts
from graftlm.models import load_model
from graftlm.models.experts import expert_weights
from graftlm.models.named_weights import named_weights
from graftlm.models.quantize import quantize_folder
from tests.oracles.mixtures import MIXTURES, tiny_mixture
from tests.oracles.tiny_architectures import tiny_model

IDS = torch.arange(1, 41).view(2, 20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mixtures")
    for kind in MIXTURES:
        tiny_mixture(kind).save_pretrained(root / kind)
        tiny_tokenizer.save_pretrained(root / kind)
    return {kind: root / kind for kind in MIXTURES}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_quantized_folder_holds_the_experts_of_a_loaded_model(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    report = quantize_folder(folders[kind], tmp_path / "nf4")
    quantized, _ = load_model(folders[kind], quantize="nf4")
    opened, _ = load_model(tmp_path / "nf4")
    stacks = {n: m for n, m in quantized.named_modules() if isinstance(m, FrozenExperts)}
    assert report["quantized_experts"] == 4 * len(stacks) > 0
    again = {n: m for n, m in opened.named_modules() if isinstance(m, FrozenExperts)}
    assert again.keys() == stacks.keys()
    for name, stack in stacks.items():
        for key, buffer in stack.named_buffers():
            assert torch.equal(buffer, again[name].get_buffer(key))
        assert again[name].shape == stack.shape
        assert again[name].transposed == stack.transposed
    assert torch.equal(logits(opened), logits(quantized))


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_are_read_tensor_by_tensor(kind: str, folders: dict[str, Path]) -> None:
    weights = named_weights(folders[kind])
    plain = AutoModelForCausalLM.from_pretrained(folders[kind])
    names = expert_weights(plain)
    assert not weights.joined
    assert names
    for name in names:
        fused = plain.get_parameter(name)
        assert torch.equal(weights(name), fused)
        if name in weights.experts:
            parts = weights.experts[name].split(fused.data)
            assert all(torch.equal(parts[k], weights.checkpoint.read(k)) for k in parts)
    streamed = weights.streamed()
    hidden, _ = streamed.run(IDS)
    torch.testing.assert_close(streamed.logits(hidden), logits(plain), rtol=1e-4, atol=1e-5)


def test_transformers_refuses_the_folder_instead_of_making_experts_up(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    quantize_folder(folders["qwen3_moe"], tmp_path / "nf4")
    with pytest.raises(RuntimeError, match="mismatched"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "nf4")


def test_a_folder_that_lacks_an_expert_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    quantize_folder(folders["qwen3_moe"], tmp_path / "nf4")
    file = tmp_path / "nf4/model.safetensors"
    tensors = load_file(file)
    lost = {key for key in tensors if "layers.1.mlp.experts.down_proj.2." in key}
    save_file({k: t for k, t in tensors.items() if k not in lost}, file, {"format": "pt"})
    assert lost
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.down_proj lacks expert 2 of 4"):
        load_model(tmp_path / "nf4")


def test_a_folder_of_other_sizes_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    quantize_folder(folders["qwen3_moe"], tmp_path / "nf4")
    config = json.loads((tmp_path / "nf4/config.json").read_text())
    config["moe_intermediate_size"] = 32
    (tmp_path / "nf4/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"\[64, 48\].*\[64, 32\]"):
        load_model(tmp_path / "nf4")


def test_experts_whose_rows_lie_in_turn_are_stored_and_read(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    tiny_model("inkling2_text").save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    names = {name: weight.shape[0] for name, weight in expert_weights(plain).items()}
    weights = named_weights(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    turned = {name: weights.experts[name] for name in names if name in weights.experts}
    assert turned
    for name, one in turned.items():
        fused = plain.get_parameter(name)
        assert torch.equal(weights(name), fused)
        assert not torch.equal(tensors[one.keys[0][0]], fused)
        for key, part in one.split(fused.data).items():
            assert torch.equal(part, tensors[key])
    report = quantize_folder(tmp_path / "base", tmp_path / "nf4")
    assert report["quantized_experts"] == sum(names.values())
    quantized, _ = load_model(tmp_path / "base", quantize="nf4")
    opened, _ = load_model(tmp_path / "nf4")
    assert torch.equal(logits(opened), logits(quantized))

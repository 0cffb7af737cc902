"""Adapters of a model that torch.compile wraps are those of the model itself."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from graftlm.adapters import add_lora, lora_modules, lora_parameters, merge_adapters
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from tests.oracles.model_families import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
IDS = torch.arange(1, 25).view(2, 12)


def compiled(whole: bool) -> nn.Module:
    """A model with adapters, compiled as a whole or layer by layer (`eager`: no compiler runs)."""
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=4, targets=("q_proj", "up_proj")))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    if whole:
        wrapped: nn.Module = torch.compile(model, backend="eager")
        return wrapped
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = torch.compile(layer, backend="eager")
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


@pytest.mark.parametrize("whole", [True, False])
def test_the_saved_adapter_loads_in_peft_and_gives_the_same_logits(
    whole: bool, tmp_path: Path
) -> None:
    model = compiled(whole)
    save_adapter(model, tmp_path)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert b"_orig_mod" not in (tmp_path / name).read_bytes()
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 8
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
    plain = tiny_model("llama")
    load_adapter(plain, tmp_path)
    torch.testing.assert_close(logits(theirs), logits(plain), rtol=1e-5, atol=1e-5)
    assert (logits(plain) - logits(tiny_model("llama"))).abs().max() > 1e-3


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_loaded_into_it_and_folded_in(whole: bool, tmp_path: Path) -> None:
    model = compiled(whole)
    save_adapter(model, tmp_path)
    again = compiled(whole)
    with torch.no_grad():
        for _, parameter in lora_parameters(again):
            parameter.zero_()
    load_adapter(again, tmp_path)
    pairs = zip(lora_parameters(again), lora_parameters(model), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    merge_adapters(again)
    assert not lora_modules(again)


@pytest.mark.parametrize("whole", [True, False])
def test_4_bit_layers_inside_it_are_merged(whole: bool) -> None:
    model = tiny_model("llama")
    for name, module in list(model.named_modules()):
        if name.endswith(("q_proj", "k_proj")):
            assert isinstance(module, nn.Linear)
            model.set_submodule(name, FrozenLinear.of(module, FrozenNF4))
    add_lora(model, LoRAConfig(rank=4, targets=("q_proj",)))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    expected = logits(model)
    layers = model.model.layers
    for index, layer in enumerate(layers):
        layers[index] = layer if whole else torch.compile(layer, backend="eager")
    merge_adapters(torch.compile(model, backend="eager") if whole else model)
    assert not any(isinstance(module, FrozenLinear) for module in model.modules())
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=2e-5)

"""Adapters on fused experts beside PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file

from graftlm.adapters import lora_parameters
from graftlm.adapters.peft_format import save_adapter
from tests.oracles.mixtures import tiny_mixture

__all__ = ["IDS", "draw", "logits", "require_same_in_peft"]

IDS = torch.arange(1, 41).view(2, 20)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return result


def draw(model: Any) -> None:
    """Random numbers in the adapters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.1)


def require_same_in_peft(model: Any, kind: str, folder: Path) -> None:
    """PEFT computes the logits and the gradients of ``model`` from the file of its adapter."""
    save_adapter(model, folder)
    theirs = peft.PeftModel.from_pretrained(tiny_mixture(kind), folder, is_trainable=True)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=2e-5)
    assert (logits(model) - logits(tiny_mixture(kind))).abs().max() > 1e-2
    for one in (model, theirs):
        one(input_ids=IDS, labels=IDS).loss.backward()
    wanted = {
        key.replace(".default", ""): parameter.grad
        for key, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    for _, parameter in lora_parameters(model):
        parameter.data = parameter.grad  # the file of the gradients has the form of the adapter's
    save_adapter(model, folder / "gradients")
    found = load_file(folder / "gradients/adapter_model.safetensors")
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=2e-6)

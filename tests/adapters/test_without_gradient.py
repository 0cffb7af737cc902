"""Adapters that cannot learn are taken off and named; the oracle is a backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graftlm.adapters import adapter_names, add_lora, lora_modules, lora_parameters
from graftlm.adapters.without_gradient import REASON, without_gradient
from graftlm.config import LoRAConfig
from graftlm.errors import TargetError
from tests.oracles.tiny_architectures import tiny_model

IDS = torch.arange(1, 49).view(2, 24)


def never_learning(model: nn.Module) -> list[str]:
    """By the backward pass of a whole loss, with updates that are not zero."""
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.05)
    logits = model(input_ids=IDS, use_cache=False).logits[:, :-1]
    F.cross_entropy(logits.transpose(1, 2), IDS[:, 1:]).backward()  # type: ignore[no-untyped-call]
    return [
        name
        for name, adapter in lora_modules(model).items()
        if all(p.grad is None or not p.grad.any() for p in adapter.adapter_parameters().values())
    ]


@pytest.mark.parametrize("model_type", ["mamba", "jamba", "llama", "mixtral"])
def test_what_is_left_learns_and_what_is_gone_is_named(model_type: str) -> None:
    model: nn.Module = tiny_model(model_type)
    report = add_lora(model, LoRAConfig(rank=4))
    gone = [name for name, reason in report.skipped.items() if reason == REASON]
    assert {name.rpartition(".")[2] for name in gone} == (
        {"dt_proj"} if model_type in ("mamba", "jamba") else set()
    )
    assert not set(gone) & set(report.adapted)
    assert set(report.adapted) == set(lora_modules(model))
    assert any("dt_proj" in note for note in report.notes) == bool(gone)
    assert isinstance(model.get_submodule(gone[0]), nn.Linear) if gone else True
    assert not never_learning(model)


def test_only_such_layers_are_refused_and_the_model_is_as_before() -> None:
    model: nn.Module = tiny_model("mamba")
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(TargetError, match="would learn"):
        add_lora(model, LoRAConfig(rank=4, targets=("dt_proj",)))
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_the_random_generator_and_the_mode_stay() -> None:
    model: nn.Module = tiny_model("llama").train()
    add_lora(model, LoRAConfig(rank=4, dropout=0.1))
    state = torch.get_rng_state()
    assert without_gradient(model, adapter_names(model)[0]) == ([], "")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_a_second_adapter_is_asked_too_and_starts_inactive() -> None:
    model: nn.Module = tiny_model("mamba")
    add_lora(model, LoRAConfig(rank=4, targets=("in_proj",)))
    report = add_lora(model, LoRAConfig(rank=2), name="other")
    assert not any("dt_proj" in name for name in report.adapted)
    assert not any(adapter.enabled for adapter in lora_modules(model, "other").values())

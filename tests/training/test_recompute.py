"""Activations that are computed again."""

from __future__ import annotations

import torch

from graftlm.adapters import add_lora, lora_parameters
from graftlm.config import LoRAConfig
from graftlm.training.recompute import recompute_activations
from tests.oracles.model_families import tiny_model

IDS = torch.arange(1, 25).view(2, 12)


def gradients(recompute: bool) -> tuple[list[torch.Tensor], list[str]]:
    """Of adapters on the second layer; and the layers that a backward pass went through."""
    torch.manual_seed(0)
    model = tiny_model("llama").requires_grad_(False)
    add_lora(model, LoRAConfig(rank=4, layers=(1,)))
    parameters = [parameter for _, parameter in lora_parameters(model)]
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.1)
    if recompute:
        recompute_activations(model)
    model.train()
    reached: list[str] = []
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(
            lambda _, __, out, name=str(index): reached.append(name) if out.requires_grad else None
        )
    model(input_ids=IDS, labels=IDS).loss.backward()
    return [parameter.grad for parameter in parameters if parameter.grad is not None], reached


def test_the_gradients_are_those_without_it() -> None:
    kept, _ = gradients(recompute=False)
    again, _ = gradients(recompute=True)
    assert len(kept) == len(again) == 14
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def test_layers_below_the_first_adapter_take_no_part_in_the_backward_pass() -> None:
    _, reached = gradients(recompute=True)
    assert set(reached) == {"1"}


def test_a_model_of_the_older_form_keeps_a_gradient_at_its_input() -> None:
    model = tiny_model("llama").requires_grad_(False)
    reached: list[bool] = []

    def older(_: object, value: bool = False) -> None:
        reached.append(value)

    model._set_gradient_checkpointing = older
    recompute_activations(model)
    assert True in reached
    assert model.get_input_embeddings()(IDS).requires_grad


def test_a_model_that_adds_to_its_embeddings_in_place() -> None:
    """As BLT does."""
    model = tiny_model("llama").requires_grad_(False)
    recompute_activations(model)
    embedded = model.get_input_embeddings()(IDS)
    embedded += 1.0
    assert not embedded.requires_grad

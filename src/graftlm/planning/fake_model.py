"""The model of a run with fake tensors, but with its real classes, types and adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graftlm._compat.float32 import kept_in_float32
from graftlm._compat.tracing import modes_off
from graftlm.adapters import add_lora, train_through_merge
from graftlm.adapters.layers import linear_shape
from graftlm.config import RunConfig
from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.formats import format_named
from graftlm.frozen.linear import FrozenLinear
from graftlm.models.assemble import assemble
from graftlm.models.experts import expert_weights, hold
from graftlm.models.streaming import linear_layers, unquantized_names
from graftlm.planning.card_attention import attend_as_a_card
from graftlm.system.placement import Placement
from graftlm.training.new_tokens import longer_vocabulary, planned_tokens
from graftlm.training.rank_probe import widest
from graftlm.training.recompute import recompute_activations
from graftlm.training.resolve import embeddings_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["build", "without_tensors"]


def without_tensors(
    architecture: PretrainedConfig, config: RunConfig, dtype: torch.dtype = torch.float32
) -> Any:
    """The model that a run would load, on the meta device, its linear layers in their format."""

    def fill(model: Any) -> Any:
        if config.method != "qlora":
            return model
        format, settings = format_named(config.model.weight_format), config.model
        kept = unquantized_names(model)
        for name, layer in linear_layers(model).items():
            shape = linear_shape(layer)
            if name not in kept and shape is not None:
                weight = format.empty(shape, dtype, settings, "meta")
                model.set_submodule(name, FrozenLinear(weight, getattr(layer, "bias", None)))
        for w in expert_weights(model).values():
            hold(w, FrozenExperts.empty(w.shape, w.transposed, format, dtype, settings, "meta"))
        return model

    with modes_off():
        return assemble(
            architecture,
            fill,
            replacements=config.model.replacements,
            embeddings=embeddings_of(config),
            dtype=dtype,
            trust_remote_code=config.model.trust_remote_code,
        )


def build(
    architecture: PretrainedConfig, config: RunConfig, dtype: torch.dtype, device: torch.device
) -> Any:
    """The model in its state before the first step of `graftlm.run`.

    The fake tensor mode must be active.

    Args:
        architecture: the transformers config.
        config: method, adapters and quantisation.
        dtype: type of the unquantised weights.
        device: the device of all tensors.
    """
    model = without_tensors(architecture, config, dtype)
    _materialise(model, dtype, device)
    if not Placement.on(device).runs_on_cpu:
        attend_as_a_card(model)
    lora = planned_tokens(config, model)
    if lora.probe_ranks:
        lora = widest(lora)
    if config.method == "full":
        longer_vocabulary(model, lora)
        model.requires_grad_(True)
    else:
        add_lora(model, lora)
        if config.lora.merge_aware:

            def original(name: str) -> Tensor:
                shape = linear_shape(model.get_submodule(name))
                return torch.empty(shape, dtype=dtype, device=device)  # type: ignore[arg-type]

            train_through_merge(model, original, config.lora.merge_aware)
    if config.train.gradient_checkpointing:
        recompute_activations(model)
    if not Placement.on(device).exists:
        # The fast path of experts queries the GPU's capabilities.
        model.set_experts_implementation("eager")
    return model.train()


def _materialise(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Move every tensor on the meta device to ``device``; tied weights stay tied."""
    made: dict[int, Tensor] = {}
    in_float32 = kept_in_float32(model, dtype)
    for name, module in model.named_modules():
        for key, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if not weight.is_meta:
                continue
            if id(weight) not in made:
                kind = dtype if in_float32.isdisjoint([*name.split("."), key]) else torch.float32
                fresh = torch.empty(weight.shape, dtype=kind, device=device)
                made[id(weight)] = nn.Parameter(fresh, requires_grad=False)
            setattr(module, key, made[id(weight)])
        for key, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, key, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))

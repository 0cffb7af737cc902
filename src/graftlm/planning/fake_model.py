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
from graftlm.frozen.formats import format_named
from graftlm.frozen.linear import FrozenLinear
from graftlm.models.assemble import assemble
from graftlm.models.streaming import linear_layers, unquantized_names
from graftlm.planning.extrapolate import depth_of, with_depth
from graftlm.training.resolve import embeddings_of
from graftlm.training.run import recompute_activations

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["build", "shallow"]


def shallow(architecture: PretrainedConfig, config: RunConfig) -> Any:
    """The model on the meta device with the layers that are traced and a run's attention."""
    depth = depth_of(architecture)
    if depth is not None:
        architecture = with_depth(architecture, min(depth, 2))
    with modes_off():
        return _assembled(architecture, config, torch.float32)


def _assembled(architecture: PretrainedConfig, config: RunConfig, dtype: torch.dtype) -> Any:
    """The model that a run would load, on the meta device, its linear layers in their format."""

    def fill(model: Any) -> Any:
        if config.method == "qlora":
            kept = unquantized_names(model)
            for name, layer in linear_layers(model).items():
                if name not in kept:
                    model.set_submodule(name, _stored(layer, config, dtype))
        return model

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
    with modes_off():
        model: Any = _assembled(architecture, config, dtype)
    _materialise(model, dtype, device)
    if config.method == "full":
        model.requires_grad_(True)
    else:
        add_lora(model, config.lora)
        if config.lora.merge_aware:

            def original(name: str) -> Tensor:
                shape = linear_shape(model.get_submodule(name))
                return torch.empty(shape, dtype=dtype, device=device)  # type: ignore[arg-type]

            train_through_merge(model, original, config.lora.merge_aware)
    if config.train.gradient_checkpointing:
        recompute_activations(model)
    return model.train()


def _stored(layer: nn.Module, config: RunConfig, dtype: torch.dtype) -> FrozenLinear:
    device = torch.device("meta")
    shape = linear_shape(layer)
    assert shape is not None
    format = format_named(config.model.weight_format)
    bias = getattr(layer, "bias", None)
    return FrozenLinear(
        format.empty(shape, dtype, config.model, device),
        None if bias is None else bias.new_empty(bias.shape, device=device),
    )


def _materialise(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Move every tensor on the meta device to ``device``; tied weights stay tied."""
    made: dict[int, Tensor] = {}
    float32 = _kept_in_float32(model, dtype)
    for name, module in model.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if not parameter.is_meta:
                continue
            if id(parameter) not in made:
                kind = torch.float32 if float32(f"{name}.{key}") else dtype
                fresh = torch.empty(parameter.shape, dtype=kind, device=device)
                made[id(parameter)] = nn.Parameter(fresh, requires_grad=False)
            setattr(module, key, made[id(parameter)])
        for key, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, key, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))


def _kept_in_float32(model: Any, dtype: torch.dtype) -> Any:
    """The parameters that transformers keeps in float32 in a 16-bit model."""
    patterns = kept_in_float32(model, dtype)
    return lambda name: any(part in patterns for part in name.split("."))

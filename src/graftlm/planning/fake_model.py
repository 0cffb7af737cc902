"""The model a run would train, as fake tensors; classes, types and adapters are the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graftlm.adapters import add_lora
from graftlm.adapters.layers import linear_shape
from graftlm.config import RunConfig
from graftlm.frozen.nf4.linear import NF4Linear
from graftlm.kernels.nf4.double_quant import GROUP_SIZE
from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.models.block_attention import quick_attention
from graftlm.models.fuse import fuse_elementwise
from graftlm.models.int8_embeddings import rows_in_int8
from graftlm.models.load import empty_model
from graftlm.models.streaming import linear_layers, unquantized_names
from graftlm.planning.extrapolate import depth_of, with_depth
from graftlm.training.recompute import recompute_activations

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["build", "shallow"]


def shallow(architecture: PretrainedConfig, config: RunConfig) -> Any:
    """The model on the meta device, as few layers as are traced, with the attention of a run."""
    depth = depth_of(architecture)
    if depth is not None:
        architecture = with_depth(architecture, min(depth, 2))
    model = empty_model(architecture, config.model.trust_remote_code)
    quick_attention(model)
    return model


def build(
    architecture: PretrainedConfig, config: RunConfig, dtype: torch.dtype, device: torch.device
) -> Any:
    """The model as `graftlm.run` would have it before the first step.

    Call it with the fake tensor mode active.

    Args:
        architecture: the transformers config.
        config: method, adapters and quantisation.
        dtype: type of the unquantised weights.
        device: where everything lives.
    """
    with torch.utils._python_dispatch._disable_current_modes():
        model: Any = empty_model(architecture, config.model.trust_remote_code)
        fuse_elementwise(model)
        if config.model.embeddings == "int8":
            rows_in_int8(model, dtype)
        quick_attention(model)
        quantized = _quantized(model) if config.method == "qlora" else {}
    for name, layer in quantized.items():
        model.set_submodule(name, _nf4(layer, config, dtype, device))
    _materialise(model, dtype, device)
    if config.method == "full":
        model.requires_grad_(True)
    else:
        add_lora(model, config.lora)
    if config.train.gradient_checkpointing:
        recompute_activations(model)
    return model.train()


def _quantized(model: Any) -> dict[str, Any]:
    kept = unquantized_names(model)
    return {name: layer for name, layer in linear_layers(model).items() if name not in kept}


def _nf4(
    layer: nn.Module, config: RunConfig, dtype: torch.dtype, device: torch.device
) -> NF4Linear:
    shape = linear_shape(layer)
    assert shape is not None
    numel, block_size = shape[0] * shape[1], config.model.block_size
    blocks = -(-numel // block_size)
    double = config.model.double_quant
    weight = NF4Weight(
        codes=torch.empty(-(-numel // 2), dtype=torch.uint8, device=device),
        absmax=torch.empty(blocks, dtype=torch.uint8 if double else torch.float32, device=device),
        nested_absmax=torch.empty(-(-blocks // GROUP_SIZE), device=device) if double else None,
        offset=torch.empty((), device=device) if double else None,
        shape=shape,
        dtype=dtype,
        block_size=block_size,
    )
    bias = getattr(layer, "bias", None)
    return NF4Linear(weight, None if bias is None else bias.new_empty(bias.shape, device=device))


def _materialise(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Put every tensor that is still on the meta device on ``device``; ties stay ties."""
    made: dict[int, Tensor] = {}
    float32 = _kept_in_float32(model, dtype)
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None or not _is_empty(parameter):
                continue
            if id(parameter) not in made:
                kind = torch.float32 if float32(f"{name}.{key}") else dtype
                fresh = torch.empty(parameter.shape, dtype=kind, device=device)
                made[id(parameter)] = nn.Parameter(fresh, requires_grad=False)
            module._parameters[key] = made[id(parameter)]
        for key, buffer in module._buffers.items():
            if buffer is not None and _is_empty(buffer):
                module._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def _is_empty(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_meta


def _kept_in_float32(model: Any, dtype: torch.dtype) -> Any:
    """Which parameters transformers keeps in float32 although the model is in 16 bits."""
    patterns = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        patterns |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return lambda name: any(part in patterns for part in name.split("."))

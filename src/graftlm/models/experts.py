"""The experts of a mixture-of-experts layer, as transformers 5 holds them: fused parameters.

    gate_up_proj [E, 2 F, H], or up_proj [E, F, H]      down_proj [E, H, F]      (or transposed)

    y_t = Σ_k p_tk · W_down,e (act(W_up,e x_t))         e = e_tk, the k-th expert of token t

`hold` puts an `ExpertStack` in the place of such a parameter, under its name: experts in a weight
format, or experts that an adapter shall be put on. The module then computes by a function of
`experts_forward.py` in the place of its own. `release` undoes it.

A few classes name or lay out their parameters in another way: JetMoE has a module with one
parameter `weight` for each projection, Llama 4 has [E, in, out].
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graftlm._compat.experts import (
    computes_by,
    computes_experts_by,
    layout_of,
    preparing,
    register_experts_function,
)
from graftlm.frozen.experts import DenseExperts, ExpertStack, FrozenExperts
from graftlm.frozen.weight import FrozenWeight, StorageSettings
from graftlm.models.experts_forward import BY_CLASS, experts_forward

__all__ = [
    "ExpertWeight",
    "dense_experts",
    "expert_weights",
    "hold",
    "parameter_order",
    "parent_of",
    "release",
    "rounded_experts",
]

NAME = "graftlm"
ORDER = "parameters_of_model"
"""The attribute of a module that names its parameters from before the first `hold`, in order."""
BLOCK = "block_of_experts"
"""The attribute of a module of `BY_CLASS` that holds the block around it, or itself."""


class ExpertWeight(NamedTuple):
    """One fused parameter.

    Attributes:
        module: the experts' module.
        leaf: the parameter's name in it.
        shape: (E, out, in).
        transposed: whether the parameter is [E, in, out].
        block: the module that prepares the rows of the experts; ``module`` if that takes tokens.
    """

    module: nn.Module
    leaf: str
    shape: tuple[int, int, int]
    transposed: bool
    block: nn.Module


def expert_weights(model: nn.Module) -> dict[str, ExpertWeight]:
    """The fused parameters of ``model`` that `hold` can replace, by name, in the model's order."""
    blocks = preparing(model)
    return {
        f"{name}.{leaf}": ExpertWeight(module, leaf, shape, transposed, blocks.get(module, module))
        for name, module in model.named_modules()
        for leaf, shape, transposed in _fused(module)
    }


def _fused(module: Any) -> Iterator[tuple[str, tuple[int, int, int], bool]]:
    layout = layout_of(module)
    if layout is None:
        return
    for leaf, parameter in module.named_parameters(recurse=False):
        if leaf in layout.leaves and parameter.ndim == 3:
            experts, rows, columns = parameter.shape
            turned = (experts, columns, rows) if layout.transposed else (experts, rows, columns)
            yield leaf, turned, layout.transposed


def hold(weight: ExpertWeight, stack: ExpertStack) -> None:
    """Put ``stack`` in the place of a fused parameter."""
    module = weight.module
    if ORDER not in module.__dict__:
        setattr(module, ORDER, [name for name, _ in module.named_parameters(recurse=False)])
    stack.train(module.training)
    delattr(module, weight.leaf)
    module.add_module(weight.leaf, stack)
    own = BY_CLASS.get(type(module).__name__)
    if own is None:
        _register()
        computes_experts_by(module, NAME)
        return
    vars(module)[BLOCK] = weight.block  # no child of the module
    computes_by(module, own.experts)
    if own.block is not None:
        computes_by(weight.block, own.block)


def release(module: nn.Module, leaf: str) -> None:
    """Put a fused parameter back: the one that `DenseExperts` holds, or a dequantised one."""
    stack: Any = getattr(module, leaf)
    weight = dense_experts(stack).weight
    delattr(module, leaf)
    module.register_parameter(leaf, weight)
    own = dict(module.named_parameters(recurse=False))
    for name in parameter_order(module):
        if name in own:
            delattr(module, name)
            module.register_parameter(name, own[name])
    layout = layout_of(module)
    assert layout is not None
    if any(isinstance(getattr(module, name, None), nn.Module) for name in layout.leaves):
        return
    delattr(module, ORDER)
    block: nn.Module | None = vars(module).pop(BLOCK, None)
    if block is None:
        computes_experts_by(module, None)
    else:
        computes_by(module, None)
        computes_by(block, None)


@torch.no_grad()
def dense_experts(stack: ExpertStack) -> DenseExperts:
    """The same experts in the type of the model, laid out as the model defines them."""
    if isinstance(stack, DenseExperts):
        return stack
    weight = nn.Parameter(stack.dequantize(), requires_grad=False)
    return DenseExperts(weight, stack.transposed).train(stack.training)


def rounded_experts(
    weight: Tensor, transposed: bool, format: type[FrozenWeight], settings: StorageSettings
) -> Tensor:
    """A fused parameter after it was stored in ``format``, in its own type and layout."""
    return FrozenExperts.of(weight, transposed, format, settings).dequantize()


def parameter_order(module: nn.Module) -> list[str]:
    """The names of the experts' parameters in the order in which the model defines them."""
    own = [name for name, _ in module.named_parameters(recurse=False)]
    order: list[str] = getattr(module, ORDER, own)
    return order


def parent_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the fused weight ``name``, and its name there."""
    parent, _, leaf = name.rpartition(".")
    return model.get_submodule(parent), leaf


@functools.cache
def _register() -> None:
    register_experts_function(NAME, experts_forward)

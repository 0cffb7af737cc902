"""The experts of a mixture-of-experts layer, as transformers 5 holds them: fused parameters.

    gate_up_proj [E, 2 F, H], or up_proj [E, F, H]      down_proj [E, H, F]      (or transposed)

    y_t = Σ_k p_tk · W_down,e (act(W_up,e x_t))         e = e_tk, the k-th expert of token t

`hold` puts an `ExpertStack` in the place of such a parameter, under its name: experts in a weight
format, or experts that an adapter shall be put on. The module then computes by `experts_forward`,
which transformers calls in the place of its own. `release` undoes it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graftlm._compat.experts import (
    computes_experts_by,
    gated,
    is_experts,
    register_experts_function,
)
from graftlm.frozen.experts import DenseExperts, ExpertStack, FrozenExperts
from graftlm.frozen.weight import FrozenWeight, StorageSettings

__all__ = [
    "ExpertWeight",
    "dense_experts",
    "expert_weights",
    "experts_forward",
    "hold",
    "parameter_order",
    "parent_of",
    "release",
    "rounded_experts",
]

NAME = "graftlm"
PROJECTIONS = {
    "gate_up_proj": "gate_up_proj_bias",
    "up_proj": "up_proj_bias",
    "down_proj": "down_proj_bias",
}
"""The fused parameters, and the name of the bias [E, out] of each."""
ORDER = "parameters_of_model"
"""The attribute of a module that names its parameters from before the first `hold`, in order."""


class ExpertWeight(NamedTuple):
    """One fused parameter.

    Attributes:
        module: the experts' module.
        leaf: the parameter's name in it.
        shape: (E, out, in).
        transposed: whether the parameter is [E, in, out].
    """

    module: nn.Module
    leaf: str
    shape: tuple[int, int, int]
    transposed: bool


def expert_weights(model: nn.Module) -> dict[str, ExpertWeight]:
    """The fused parameters of ``model`` that `hold` can replace, by name, in the model's order."""
    return {
        f"{name}.{leaf}": ExpertWeight(module, leaf, shape, module.is_transposed)
        for name, module in model.named_modules()
        if is_experts(module)
        for leaf, shape in _fused(module)
    }


def _fused(module: Any) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for leaf, parameter in module.named_parameters(recurse=False):
        if leaf in PROJECTIONS and parameter.ndim == 3:
            experts, rows, columns = parameter.shape
            yield leaf, (experts, columns, rows) if module.is_transposed else tuple(parameter.shape)


def hold(weight: ExpertWeight, stack: ExpertStack) -> None:
    """Put ``stack`` in the place of a fused parameter."""
    _register()
    module = weight.module
    if ORDER not in module.__dict__:
        setattr(module, ORDER, [name for name, _ in module.named_parameters(recurse=False)])
    stack.train(module.training)
    delattr(module, weight.leaf)
    module.add_module(weight.leaf, stack)
    computes_experts_by(module, NAME)


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
    if not any(isinstance(getattr(module, name, None), nn.Module) for name in PROJECTIONS):
        computes_experts_by(module, None)
        delattr(module, ORDER)


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


def experts_forward(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The weighted sum of each token's experts.

    Args:
        module: the experts' module of transformers, one of its parameters or both held.
        hidden_states: [T, H].
        top_k_index: [T, K], the experts of each token. A number from E on stands for none.
        top_k_weights: [T, K].

    Returns:
        [T, H] in the type of ``hidden_states``.
    """
    tokens, chosen = top_k_index.shape
    experts = top_k_index.reshape(-1)
    order = torch.argsort(experts, stable=True)
    counts = torch.bincount(experts, minlength=module.num_experts)[: module.num_experts].tolist()
    order = order[: sum(counts)]
    x = hidden_states.index_select(0, order // chosen)
    if module.has_gate:
        x = gated(module, _product(module, "gate_up_proj", x, counts))
    else:
        x = module.act_fn(_product(module, "up_proj", x, counts))
    y = _product(module, "down_proj", x, counts)
    if module.has_post_expert_norm:
        y = module.post_expert_norm(y)
    y = y * top_k_weights.reshape(-1).index_select(0, order)[:, None]
    places = y.new_zeros(tokens * chosen, y.shape[-1]).index_copy(0, order, y)
    return places.view(tokens, chosen, -1).sum(1).to(hidden_states.dtype)


def _product(module: Any, leaf: str, x: Tensor, counts: list[int]) -> Tensor:
    weight = getattr(module, leaf)
    bias = getattr(module, PROJECTIONS[leaf]) if module.has_bias else None
    if isinstance(weight, nn.Parameter):
        weight = DenseExperts(weight, module.is_transposed)
    y: Tensor = weight(x, counts, bias)
    return y

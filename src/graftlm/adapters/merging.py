"""Merges adapters into the weights (arXiv 2106.09685, section 4.1).

    W' = W + Δ          Δ = s · B A for LoRA; the sum over the adapters that are on

computed in float32 and rounded once, to the type of W: see `rounding.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftlm._compat.compiled import uncompiled, without_compile_prefix
from graftlm.adapters.adapted import adapted_modules, base_modules, token_table
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.layers import stores_transposed
from graftlm.adapters.report import tied_head
from graftlm.adapters.rounding import Rounding, round_once
from graftlm.adapters.several import adapters_at
from graftlm.adapters.weights_read_directly import in_effect, without_effect
from graftlm.frozen.experts import DenseExperts, FrozenExperts
from graftlm.frozen.linear import FrozenLinear
from graftlm.models.capabilities import forget
from graftlm.models.experts import dense_experts, parent_of, release

__all__ = [
    "MergeReport",
    "changing",
    "delta_of",
    "dequantize_layers",
    "exact_part",
    "merge_adapters",
    "merge_in_place",
    "merge_part",
    "part_of",
]

ModelT = TypeVar("ModelT", bound=nn.Module)

SOME = 1 << 20
"""So many weights are added at once, since torch widens what it adds."""


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """The report of a merge.

    Attributes:
        merged: names of the modules whose weight changed.
        largest_rounding: largest difference between a stored weight and its float32 value.
        untied: whether the output head no longer shares its weight with the token table.
        update_kept: share of the update that remains after rounding.
        weights_changed: share of the weights with an update whose stored value changed.
        left_out: modules whose update has no effect and was not merged.
    """

    merged: tuple[str, ...]
    largest_rounding: float
    untied: bool
    update_kept: float = 1.0
    weights_changed: float = 1.0
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"{len(self.merged)} modules merged; largest rounding of a weight "
            f"{self.largest_rounding:.2e}; {self.update_kept:.1%} of the update survives it"
        )
        if self.untied:
            text += "; the output head no longer shares its weight with the token embeddings"
        if self.left_out:
            text += f"; {len(self.left_out)} updates without effect left out"
        return text


def merge_part(
    adapters: Sequence[Adapter],
    base: nn.Module,
    part: str,
    tensor: Tensor,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Rounding]:
    """One tensor of the base after the merge, rounded once; and the effect of the rounding.

    Args:
        adapters: those that change it, at least one.
        base: the module that is adapted.
        part: the tensor's name in ``base``.
        tensor: the frozen tensor in its own layout.
        dtype: the type of the result; the tensor's by default.
    """
    exact = exact_part(adapters, base, part, tensor)
    if all(adapter.replaced(part, tensor) is None for adapter in adapters):
        delta = delta_of(adapters, base, tensor)
    else:
        delta = exact - tensor.float()
    return round_once(tensor, exact, delta, dtype)


@torch.no_grad()
def exact_part(adapters: Sequence[Adapter], base: nn.Module, part: str, tensor: Tensor) -> Tensor:
    """One tensor of the base after the merge, in float32; the arguments are as above."""
    first = adapters[0].replaced(part, tensor)
    if first is not None and len(adapters) == 1:
        return first
    delta = delta_of(adapters[:1], base, tensor) if first is None else first - tensor
    exact = delta.contiguous()
    parts = torch.split(exact.view(-1), SOME), torch.split(tensor.reshape(-1), SOME)
    for into, some in zip(*parts, strict=True):
        into += some  # W + Δ in the memory of Δ
    for adapter in adapters[1:]:
        new = adapter.replaced(part, tensor)
        exact += delta_of([adapter], base, tensor) if new is None else new - tensor
    return exact


def changing(adapters: Iterable[Adapter]) -> dict[str, list[Adapter]]:
    """Those of ``adapters`` that change a tensor of their base, by the tensor's name there."""
    parts: dict[str, list[Adapter]] = {}
    for adapter in adapters:
        for part in adapter.parts():
            parts.setdefault(part, []).append(adapter)
    return parts


def part_of(base: nn.Module, part: str) -> tuple[nn.Module, str]:
    """The module inside ``base`` that holds the tensor ``part``, and its name there."""
    parent, _, leaf = part.rpartition(".")
    return base.get_submodule(parent), leaf


def delta_of(adapters: Iterable[Adapter], base: nn.Module, weight: Tensor) -> Tensor:
    """The sum of the updates of ``adapters`` in float32, laid out as ``base`` stores its weight.

    Args:
        adapters: at least one.
        base: the module that is adapted.
        weight: its weight in its own layout.
    """
    transposed = stores_transposed(base)
    W = weight.mT if transposed else weight
    first, *others = (adapter.delta(W) for adapter in adapters)
    delta = sum(others, first)
    return delta.mT if transposed else delta


def merge_adapters(model: nn.Module) -> MergeReport:
    """Merge the active updates into their weights, in place, and remove all adapters.

    The result is a plain transformers model, except for 8-bit embeddings. All layers in a weight
    format are dequantised to the type of the model's computation. If a weight is shared with a
    module that is not adapted, a copy is changed, and ``config.tie_word_embeddings`` becomes false.
    An update without effect, because the model reads the weight itself, is left out and named.
    """
    dead = without_effect(model)
    for there in adapted_modules(model).values():
        for adapter in adapters_at(there):
            if (through := getattr(adapter, "through", None)) is not None:
                through.renew(adapter, there.base)
    dequantize_layers(model)
    tied = tied_head(model)
    for there in adapted_modules(model).values():
        changing(adapters_at(there))  # refuses, before anything changes, what cannot be merged
    total, merged = Rounding(), []
    followers: list[tuple[nn.Module, Tensor]] = []
    for name, there in adapted_modules(model).items():
        base = there.base
        on = [adapter for adapter in adapters_at(there) if adapter.enabled]
        changed = {part: one for part, one in changing(on).items() if in_effect(name, part, dead)}
        if on and all(getattr(adapter, "through", None) is not None for adapter in on):
            merged.append(name)  # the stored weight is the merged one
        elif changed:
            for part, adapters in changed.items():
                holder, leaf = part_of(base, part)
                tensor, rounding = merge_part(adapters, base, part, getattr(holder, leaf))
                setattr(holder, leaf, nn.Parameter(tensor, requires_grad=False))
                total.add(rounding)
                if part == "weight" and any(adapter.follows for adapter in adapters):
                    followers.append((base, tensor))
            merged.append(name)
        model.set_submodule(name, base)
        if isinstance(base, DenseExperts):
            release(*parent_of(model, name))
    for base, weight in followers:
        table = token_table(model)
        same = table is not None and torch.equal(cast("Tensor", table.weight), weight)
        base.weight = cast("nn.Parameter", table.weight) if same and table else base.weight
    forget(model)
    untied = tied and not tied_head(model)
    if untied:
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    return MergeReport(
        tuple(merged), total.largest, untied, total.update_kept, total.weights_changed, tuple(dead)
    )


def merge_in_place(model: ModelT) -> ModelT:
    """`merge_adapters`; returns the plain model."""
    merge_adapters(model)
    return model


def dequantize_layers(model: nn.Module) -> None:
    """Replace every layer in a weight format by the model's original kind of layer, in place.

    Experts that have an adapter stay apart until it is merged.
    """
    _dequantize_experts(model)
    stored = {name: m for name, m in model.named_modules() if isinstance(m, FrozenLinear)}
    if not stored:
        return
    adapted = adapted_modules(model)
    with torch.device("meta"):
        original = base_modules(type(uncompiled(model))(model.config))
    for name, layer in stored.items():
        bare = without_compile_prefix(name)
        above = bare.removesuffix(".base")
        plain = original[above if above in adapted else bare]
        weight = layer.frozen.dequantize()
        if isinstance(plain, Conv1D):
            weight = weight.T.contiguous()
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = layer.bias  # type: ignore[assignment]
        plain.train(layer.training)
        model.set_submodule(name, plain)


def _dequantize_experts(model: nn.Module) -> None:
    adapted = adapted_modules(model)
    stacks = {name: m for name, m in model.named_modules() if isinstance(m, FrozenExperts)}
    for name, stack in stacks.items():
        above = without_compile_prefix(name).removesuffix(".base")
        if above in adapted:
            model.set_submodule(name, dense_experts(stack))
        else:
            release(*parent_of(model, name))

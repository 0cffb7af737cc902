"""Merges the adapters of a model for a while: as quick as the base, and exactly undone.

    W' = W + Δ        in the type of the computation, in place of the base and its update

Subtracting Δ from a rounded W' does not give W back. So nothing is subtracted: the base's own
weights are kept beside the merged ones, and `Folded.unmerge` puts the same objects back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from graftlm.adapters.adapted import adapted_modules
from graftlm.adapters.merging import changing, merge_part, part_of
from graftlm.adapters.several import adapters_at
from graftlm.adapters.weights_read_directly import without_effect
from graftlm.frozen.experts import DenseExperts, FrozenExperts
from graftlm.frozen.linear import FrozenLinear
from graftlm.models.capabilities import forget
from graftlm.models.experts import dense_experts

__all__ = ["Folded", "fold"]


@dataclasses.dataclass(eq=False)
class Folded:
    """A model whose adapters are merged for a while.

    Attributes:
        model: the model.
        merged: the names of the modules whose weight is a merged one.
    """

    model: nn.Module
    merged: list[str]
    _undo: list[Callable[[], None]]

    def unmerge(self) -> None:
        """Restore the base's weights and the adapters; a second call does nothing."""
        while self._undo:
            self._undo.pop()()
        forget(self.model)


@torch.no_grad()
def fold(model: nn.Module) -> Folded:
    """Merge the active updates into dense weights, in place, and switch the adapters off.

    Takes the memory of the merged weights in addition to the model's. An adapter that trains
    through its merge is left as it is: its base holds the merged weight already. So is one without
    effect, because the model reads the weight itself.
    """
    folded = Folded(model, [], [])
    dead = without_effect(model)
    for name, there in adapted_modules(model).items():
        on = [one for one in adapters_at(there) if one.enabled and name not in dead]
        if not on or any(getattr(adapter, "through", None) is not None for adapter in on):
            continue
        base = there.base
        with_bias = any(getattr(adapter, "lora_bias", None) is not None for adapter in on)
        if with_bias and getattr(base, "bias", None) is None:
            continue  # there is no tensor that could take the update's bias
        if isinstance(base, FrozenLinear):
            dense = base.frozen.dequantize()
            bias: Tensor | None = base.bias
            parts = changing(on)
            if "weight" in parts:
                dense, _ = merge_part(parts["weight"], base, "weight", dense)
            if "bias" in parts and bias is not None:
                bias, _ = merge_part(parts["bias"], base, "bias", bias)
            there.base = _linear(dense, bias)
            folded._undo.append(functools.partial(setattr, there, "base", base))
        elif isinstance(base, FrozenExperts):
            experts = dense_experts(base)
            weight, _ = merge_part(on, base, "weight", experts.weight)
            there.base = DenseExperts(nn.Parameter(weight, requires_grad=False), base.transposed)
            folded._undo.append(functools.partial(setattr, there, "base", base))
        else:
            for part, adapters in changing(on).items():
                holder, leaf = part_of(base, part)
                original = cast("nn.Parameter", getattr(holder, leaf))
                tensor, _ = merge_part(adapters, base, part, original)
                setattr(holder, leaf, nn.Parameter(tensor, requires_grad=False))
                folded._undo.append(functools.partial(setattr, holder, leaf, original))
        for adapter in on:
            adapter.enabled = False
            folded._undo.append(functools.partial(setattr, adapter, "enabled", True))
        folded.merged.append(name)
    forget(model)
    return folded


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    held = None if bias is None else nn.Parameter(bias, requires_grad=False)
    layer.bias = held  # type: ignore[assignment]
    return layer

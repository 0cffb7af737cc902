"""Questions about the frozen weights of a model, for any format."""

from __future__ import annotations

import collections
from typing import Any

from torch import Tensor, nn

from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.stored_weight import StoredWeight
from graftlm.frozen.weight import FrozenWeight

__all__ = ["held_as", "linear_format", "shared_weight", "stored_weights"]


def stored_weights(model: nn.Module) -> list[FrozenWeight]:
    """Every weight of ``model`` in a storage format; a shared one is listed once."""
    weights: list[FrozenWeight] = []
    for module in model.modules():
        if isinstance(module, StoredWeight):
            weights.append(module.frozen)
        elif isinstance(module, FrozenExperts):
            weights += module.matrices()
    return weights


def shared_weight(module: nn.Module | None) -> Tensor | StoredWeight | None:
    """The object that modules with one weight share: the tensor, or the module that stores it."""
    rows = getattr(module, "rows", None)
    if isinstance(rows, StoredWeight):
        return rows
    return getattr(module, "weight", None)


def linear_format(model: nn.Module) -> str | None:
    """The format of the linear layers of ``model``; ``None``: dense.

    If there are several formats, the most frequent one.
    """
    held = collections.Counter(
        module.frozen.format for module in model.modules() if isinstance(module, FrozenLinear)
    )
    return held.most_common(1)[0][0] if held else None


def held_as(model: nn.Module) -> dict[str, Any]:
    """Format and settings of the linear layers of ``model``, by the names of `ModelConfig`."""
    name = linear_format(model)
    for module in model.modules():
        if isinstance(module, FrozenLinear) and module.frozen.format == name:
            return {"weight_format": name, **module.frozen.settings()}
    return {}

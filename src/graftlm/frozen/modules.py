"""What code that walks a model may ask about its frozen weights, whatever their format."""

from __future__ import annotations

import collections
from typing import Any

from torch import Tensor, nn

from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.stored_weight import StoredWeight
from graftlm.frozen.weight import FrozenWeight

__all__ = ["held_as", "linear_format", "shared_weight", "stored_weights"]


def stored_weights(model: nn.Module) -> list[FrozenWeight]:
    """Every weight of ``model`` that is held in a storage format, a shared one once."""
    return [module.frozen for module in model.modules() if isinstance(module, StoredWeight)]


def shared_weight(module: nn.Module | None) -> Tensor | StoredWeight | None:
    """What two modules with one weight have in common: the tensor, or the module that stores it."""
    rows = getattr(module, "rows", None)
    if isinstance(rows, StoredWeight):
        return rows
    return getattr(module, "weight", None)


def linear_format(model: nn.Module) -> str | None:
    """The format that the linear layers of ``model`` are held in; ``None``: dense.

    Of several formats, the one that most layers are held in.
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

"""Common properties of the linear layers of several libraries."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = ["linear_shape", "stores_transposed"]


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """``(out_features, in_features)`` of a module that computes ``x Wᵀ + b``, else ``None``."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None


def stores_transposed(module: nn.Module) -> bool:
    """Whether the module's ``weight`` is [in, out] (GPT-2), not [out, in]."""
    return isinstance(module, Conv1D)

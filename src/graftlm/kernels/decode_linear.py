"""The product of a few rows with a large dense weight, read once: a head's while decoding.

PyTorch's own product in 16 bits reorders the whole weight first, on every call; for a vocabulary of
262,144 that is half the time of a token.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels import native
from graftlm.kernels.register import define

__all__ = ["MOST_ROWS", "few_rows_linear"]

MOST_ROWS = 32
"""With more rows than this the arithmetic outweighs the reading."""


def few_rows_linear(x: Tensor, weight: Tensor, row_scale: Tensor | None = None) -> Tensor:
    """``x Wᵀ``; not differentiable.

    Args:
        x: (..., D), a few rows.
        weight: (V, D), of any floating-point type, or int8 with ``row_scale``.
        row_scale: (V,) float32, what multiplies each row of ``weight``.

    Returns:
        (..., V) in the type of ``x``; sums are float32.
    """
    y: Tensor = _few_rows_linear(x, weight, row_scale)
    return y


def _forward(x: Tensor, weight: Tensor, row_scale: Tensor | None) -> Tensor:
    if row_scale is not None and row_scale.shape != weight.shape[:1]:
        raise ModelError(f"row_scale is {tuple(row_scale.shape)}: expected ({len(weight)},)")
    if x.shape[-1] != weight.shape[1]:
        raise ModelError(f"x has {x.shape[-1]} features: expected {weight.shape[1]}")
    if native.takes(x) and native.takes_rows(weight, row_scale):
        return native.dense_linear(x, weight, row_scale)
    y = F.linear(x.float(), weight.float())
    return (y if row_scale is None else y * row_scale).to(x.dtype)


def _fake(x: Tensor, weight: Tensor, row_scale: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


_few_rows_linear = define(
    "few_rows_linear(Tensor x, Tensor weight, Tensor? row_scale) -> Tensor", _forward, _fake
)

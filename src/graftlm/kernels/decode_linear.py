"""The product of a few rows with a large dense weight, such as the logits of a token.

The kernel reads the weight once. PyTorch's 16-bit product first reorders the whole weight in every
call, which for a vocabulary of 262,144 words is half the time of a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.operator import Case, Operator
from graftlm.kernels.products import draw

__all__ = ["MOST_ROWS", "few_rows_linear", "has_kernel"]

MOST_ROWS = 32
"""With more rows than this, arithmetic takes longer than reading the weight."""


def few_rows_linear(x: Tensor, weight: Tensor, row_scale: Tensor | None = None) -> Tensor:
    """``x Wᵀ``; not differentiable.

    Args:
        x: (..., D), a few rows.
        weight: (V, D), of any floating-point type, or int8 with ``row_scale``.
        row_scale: (V,) float32, what multiplies each row of ``weight``.

    Returns:
        (..., V) in the type of ``x``; sums are float32.

    Raises:
        ModelError: shapes do not fit.
    """
    y: Tensor = _few_rows_linear(x, weight, row_scale)
    return y


def has_kernel(x: Tensor, weight: Tensor, row_scale: Tensor | None = None) -> bool:
    """Whether a kernel computes this product; the reference is slower than PyTorch's own."""
    return _few_rows_linear.has_kernel(x, weight, row_scale)


def _check(x: Tensor, weight: Tensor, row_scale: Tensor | None) -> None:
    if row_scale is not None and row_scale.shape != weight.shape[:1]:
        raise ModelError(f"row_scale is {tuple(row_scale.shape)}: expected ({len(weight)},)")
    if x.shape[-1] != weight.shape[1]:
        raise ModelError(f"x has {x.shape[-1]} features: expected {weight.shape[1]}")


def _reference(x: Tensor, weight: Tensor, row_scale: Tensor | None) -> Tensor:
    y = F.linear(x.float(), weight.float())
    return (y if row_scale is None else y * row_scale).to(x.dtype)


def _fake(x: Tensor, weight: Tensor, row_scale: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _workspace(x: Tensor, weight: Tensor, row_scale: Tensor | None) -> int:
    """Both factors in float32."""
    return 4 * (x.numel() + weight.numel())


def _cases() -> list[Case]:
    x, weight = draw(4, 64), draw(5000, 64, seed=1)
    codes = (30 * weight).clamp(-127, 127).to(torch.int8)
    return [
        Case("", (x, weight, None), 1e-5),
        Case("bfloat16", (x.bfloat16(), weight.bfloat16(), None), 1e-2),
        Case("int8", (x, codes, draw(5000, seed=2).abs()), 1e-5),
    ]


_few_rows_linear = Operator(
    schema="few_rows_linear(Tensor x, Tensor weight, Tensor? row_scale) -> Tensor",
    family="few_rows_linear",
    check=_check,
    reference=_reference,
    fake=_fake,
    cases=_cases,
    workspace=_workspace,
)

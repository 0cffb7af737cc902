"""The operators on NF4 weights, and the one place that decides what runs them.

Everything above this package calls these three functions. `linear` is differentiable in ``x`` and
``bias``; it keeps the 4-bit weight, not a dequantised copy, and its backward reads that again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graftlm import nf4
from graftlm.kernels import reference
from graftlm.nf4.weight import NF4Weight

__all__ = ["dequantize", "linear", "quantize"]


def quantize(w: Tensor, block_size: int = 64, double_quant: bool = True) -> NF4Weight:
    """Quantise a floating-point tensor to NF4, bit-identical to bitsandbytes."""
    return nf4.quantize(w, block_size, double_quant)


def dequantize(w4: NF4Weight, dtype: torch.dtype | None = None) -> Tensor:
    """The weight as a dense tensor of ``w4.shape``, in ``dtype`` or the type it had."""
    return nf4.dequantize(w4, dtype)


def linear(
    x: Tensor, w4: NF4Weight, bias: Tensor | None = None, compute_dtype: torch.dtype | None = None
) -> Tensor:
    """``y = x Wᵀ + b``; differentiable in ``x`` and ``b``, never in W.

    Args:
        x: (..., in_features).
        w4: the frozen weight (out_features, in_features) in NF4.
        bias: (out_features,) or ``None``.
        compute_dtype: the type of the factors of the product; sums are float32. ``None`` takes the
            type of ``x``, or float32 where the CPU has no instructions for it.

    Returns:
        (..., out_features) in the type of ``x``.
    """
    y: Tensor = _NF4Product.apply(x, w4, compute_dtype)  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias.to(y.dtype)


class _NF4Product(torch.autograd.Function):
    """``x Wᵀ`` forward, ``dy W`` backward; holds on to the 4-bit weight, nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w4: NF4Weight, compute: torch.dtype | None) -> Tensor:
        ctx.w4, ctx.compute = w4, compute
        return reference.linear(x, w4, compute or x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return reference.linear_backward(dy, ctx.w4, ctx.compute or dy.dtype), None, None

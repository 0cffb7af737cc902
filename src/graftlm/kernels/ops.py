"""The operators on NF4 weights that the layers call.

`linear` is differentiable in ``x`` and ``bias``; it keeps the 4-bit weight, not a dequantised copy,
and its backward reads that again. What runs them is decided in `graftlm.kernels.library`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftlm.kernels import library, native
from graftlm.kernels import lora_linear as update
from graftlm.kernels.library import Compute
from graftlm.kernels.nf4.double_quant import double_quantize
from graftlm.kernels.nf4.quantize import assemble
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["Compute", "dequantize", "linear", "lora_linear", "quantize"]


def quantize(w: Tensor, block_size: int = 64, double_quant: bool = True) -> NF4Weight:
    """Quantise a floating-point tensor to NF4, bit-identical to bitsandbytes on a CPU.

    Raises:
        ConfigError: ``block_size`` is not one the format has.
        ModelError: ``w`` is empty, of another type, or holds NaN or infinity.
    """
    codes, absmax = library.nf4_quantize(w.detach(), block_size)
    shrink = native.double_quantize if native.takes(absmax) else double_quantize
    return assemble(w, codes, absmax, block_size, shrink if double_quant else None)


def dequantize(w4: NF4Weight, dtype: torch.dtype | None = None) -> Tensor:
    """The weight as a dense tensor of ``w4.shape``, in ``dtype`` or the type it had."""
    dense: Tensor = library.nf4_dequantize(*_parts(w4), dtype or w4.dtype)
    return dense


def linear(
    x: Tensor, w4: NF4Weight, bias: Tensor | None = None, compute: Compute = "auto"
) -> Tensor:
    """``y = x Wᵀ + b``; differentiable in ``x`` and ``b``, never in W.

    Args:
        x: (..., in_features).
        w4: the frozen weight (out_features, in_features) in NF4.
        bias: (out_features,) or ``None``.
        compute: the arithmetic, forward and backward; see `graftlm.kernels.library.compute_type`.

    Returns:
        (..., out_features) in the type of ``x``.
    """
    y: Tensor = library.nf4_linear(x, *_parts(w4), bias, compute)
    return y


def lora_linear(
    x: Tensor,
    w: NF4Weight | Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    compute: Compute = "auto",
) -> Tensor:
    """``y = x Wᵀ + b + scaling · (x Aᵀ) Bᵀ``; differentiable in all but W.

    Args:
        x: (..., in_features).
        w: the frozen weight (out_features, in_features), in NF4 or dense.
        bias: (out_features,) or ``None``.
        A: [rank, in_features].
        B: [out_features, rank].
        scaling: the factor of the update.
        compute: the arithmetic, as for `linear`.

    Returns:
        (..., out_features) in the type of ``x``.
    """
    rest = (bias, A, B, scaling, compute)
    y: Tensor
    if isinstance(w, Tensor):
        y, _ = update.lora_linear(x, w, *rest)
    else:
        y, _ = update.nf4_lora_linear(x, *_parts(w), *rest)
    return y


def _parts(w4: NF4Weight) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, list[int], int]:
    return w4.codes, w4.absmax, w4.nested_absmax, w4.offset, list(w4.shape), w4.block_size

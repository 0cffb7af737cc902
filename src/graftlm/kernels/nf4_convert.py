"""The operators that store a weight in 4 bits and restore it.

`graftlm.kernels.nf4` states the format and the equations, and is their reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels import nf4
from graftlm.kernels.nf4.double_quant import GROUP_SIZE, double_quantize
from graftlm.kernels.nf4.quantize import assemble, check, quantize_blocks
from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.kernels.operator import Case, Operator
from graftlm.kernels.products import (
    WEIGHT,
    check_stored,
    draw,
    stored_case,
    weight,
    weight_arguments,
)

__all__ = ["dequantize", "quantize", "shrink_maxima"]


def quantize(w: Tensor, block_size: int = 64, double_quant: bool = True) -> NF4Weight:
    """Quantise a weight to NF4, bit-identical to bitsandbytes on a CPU.

    Args:
        w: any shape; float32, bfloat16 or float16; at least one element, all finite.
        block_size: consecutive weights that share one scale, one of
            `graftlm.kernels.nf4.chunks.BLOCK_SIZES`.
        double_quant: store the scales themselves in 8 bits: 4.127 bits a weight instead of 4.5.

    Returns:
        The stored weight, on the device of ``w``.

    Raises:
        ConfigError: ``block_size`` is not one the format has.
        ModelError: ``w`` is empty, of another type, or holds NaN or infinity.
    """
    codes, absmax = _quantize(w.detach(), block_size)
    return assemble(w, codes, absmax, block_size, _double_quantize if double_quant else None)


def shrink_maxima(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Block maxima in 8 bits, as `quantize` stores them if ``double_quant``.

    Args:
        absmax: float32 [blocks], of the whole weight.

    Returns:
        uint8 [blocks] codes, float32 [groups] nested maxima, float32 [] offset.
    """
    codes, nested_absmax, offset = _double_quantize(absmax)
    return codes, nested_absmax, offset


def dequantize(w4: NF4Weight, dtype: torch.dtype | None = None) -> Tensor:
    """The weight as a dense tensor of ``w4.shape``, in ``dtype`` or the type it had.

    Raises:
        ModelError: ``dtype`` is not a floating-point type, or the weight's parts do not fit.
    """
    dense: Tensor = _dequantize(*weight_arguments(w4), dtype or w4.dtype)
    return dense


def _check_dequantize(*arguments: Any) -> None:
    *parts, dtype = arguments
    check_stored(*parts)
    if not dtype.is_floating_point:
        raise ModelError(
            f"cannot dequantise to {dtype}: expected a floating-point type, such as torch.float32"
        )


def _reference_dequantize(codes: Tensor, *rest: Any) -> Tensor:
    *parts, dtype = rest
    return nf4.dequantize(weight(codes, *parts), dtype)


def _check_double_quantize(absmax: Tensor) -> None:
    if absmax.dtype != torch.float32 or absmax.ndim != 1:
        raise ModelError(
            f"block maxima are {tuple(absmax.shape)} of {absmax.dtype}: expected one dimension of "
            "float32"
        )


def _fake_quantize(w: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    codes = w.new_empty((w.numel() + 1) // 2, dtype=torch.uint8)
    return codes, w.new_empty(-(-w.numel() // block_size), dtype=torch.float32)


def _fake_dequantize(codes: Tensor, *rest: Any) -> Tensor:
    shape, dtype = rest[3], rest[5]
    return codes.new_empty(shape, dtype=dtype)


def _fake_double_quantize(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes = absmax.new_empty(absmax.shape, dtype=torch.uint8)
    return codes, absmax.new_empty(-(-absmax.numel() // GROUP_SIZE)), absmax.new_empty(())


def _quantize_cases() -> list[Case]:
    return [
        Case("", (draw(320, 640), 64), 0.0),
        Case("bfloat16, a short last block", (draw(33, 71, dtype=torch.bfloat16), 32), 0.0),
    ]


def _dequantize_cases() -> list[Case]:
    plain = weight_arguments(nf4.quantize(draw(33, 71), 32, double_quant=False))
    return [
        Case("", (*stored_case(), torch.float32), 0.0),
        Case("bfloat16", (*stored_case(), torch.bfloat16), 0.0),
        Case("maxima in float32", (*plain, torch.float16), 0.0),
    ]


def _double_quantize_cases() -> list[Case]:
    return [Case("", (draw(3210).abs(),), 0.0)]


_quantize = Operator(
    schema="nf4_quantize(Tensor w, int block_size) -> (Tensor codes, Tensor absmax)",
    family="nf4_quantize",
    check=check,
    reference=quantize_blocks,
    fake=_fake_quantize,
    cases=_quantize_cases,
)
_dequantize = Operator(
    schema=f"nf4_dequantize({WEIGHT}, ScalarType dtype) -> Tensor",
    family="nf4_dequantize",
    check=_check_dequantize,
    reference=_reference_dequantize,
    fake=_fake_dequantize,
    cases=_dequantize_cases,
)
_double_quantize = Operator(
    schema="nf4_double_quantize(Tensor absmax) "
    "-> (Tensor codes, Tensor nested_absmax, Tensor offset)",
    family="nf4_double_quantize",
    check=_check_double_quantize,
    reference=double_quantize,
    fake=_fake_double_quantize,
    cases=_double_quantize_cases,
)

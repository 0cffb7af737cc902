"""Shared code of the operators on a frozen weight: schema, checks and arithmetic.

An operator takes a stored 4-bit weight as its tensors and sizes:

    codes, absmax, nested_absmax?, offset?, shape, block_size
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels import nf4
from graftlm.kernels.nf4.double_quant import GROUP_SIZE
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = [
    "WEIGHT",
    "Compute",
    "check_factor",
    "check_stored",
    "compute_type",
    "draw",
    "rows_of",
    "stored_case",
    "weight",
    "weight_arguments",
]

Compute = Literal["auto", "float32", "bfloat16", "bfloat16x3"]

WEIGHT = (
    "Tensor codes, Tensor absmax, Tensor? nested_absmax, Tensor? offset, int[] shape, "
    "int block_size"
)
"""The schema of a stored weight."""

_BY_PRECISION = {"highest": "float32", "high": "bfloat16x3", "medium": "bfloat16"}


def compute_type(compute: str, dtype: torch.dtype) -> str:
    """The arithmetic of a product whose input is of ``dtype``; sums are always float32.

    ``auto``: bfloat16 multiplies as bfloat16. float32 follows `torch.set_float32_matmul_precision`,
    as PyTorch's own products do: ``highest``, the default, is exact float32; ``high`` splits each
    factor in two bfloat16 and takes three products, nearly as exact; ``medium`` rounds to bfloat16.

    Without bfloat16 tiles (AMX), rounding to bfloat16 would be slower than float32. There ``high``
    is float32, and so is ``bfloat16``, except on AVX2: there the factors become blocks of 16-bit
    integers, which multiply faster than float32 and lose an eighth of what bfloat16 loses
    (csrc/gemm_int16.inl).
    """
    if compute != "auto":
        return compute
    if dtype == torch.float32:
        return _BY_PRECISION[torch.get_float32_matmul_precision()]
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def weight(
    codes: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    offset: Tensor | None,
    shape: Sequence[int],
    block_size: int,
) -> NF4Weight:
    """The stored weight from an operator's arguments."""
    return NF4Weight(codes, absmax, nested_absmax, offset, tuple(shape), torch.float32, block_size)


def weight_arguments(
    w4: NF4Weight,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, list[int], int]:
    """An operator's arguments from the stored weight."""
    return w4.codes, w4.absmax, w4.nested_absmax, w4.offset, list(w4.shape), w4.block_size


def check_stored(
    codes: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    offset: Tensor | None,
    shape: Sequence[int],
    block_size: int,
) -> None:
    """Raise unless the parts of a stored weight have the types and sizes of one such weight."""
    numel = math.prod(shape)
    blocks = -(-numel // block_size)
    device = codes.device
    _check_part("codes", codes, torch.uint8, (numel + 1) // 2, device)
    if nested_absmax is None or offset is None:
        _check_part("absmax", absmax, torch.float32, blocks, device)
        return
    _check_part("absmax", absmax, torch.uint8, blocks, device)
    _check_part("nested_absmax", nested_absmax, torch.float32, -(-blocks // GROUP_SIZE), device)
    _check_part("offset", offset, torch.float32, 1, device)


def _check_part(
    name: str, tensor: Tensor, dtype: torch.dtype, count: int, device: torch.device
) -> None:
    if tensor.dtype != dtype or tensor.numel() != count or tensor.device != device:
        raise ModelError(
            f"{name} of a 4-bit weight has {tensor.numel()} elements of {tensor.dtype} on "
            f"{tensor.device}: expected {count} of {dtype} on {device}; the weight is corrupt, or "
            "its parts were moved or converted apart"
        )


def check_factor(
    name: str, factor: Tensor, device: torch.device, shape: Sequence[int], features: int
) -> None:
    """Raise unless ``factor`` (..., features) can be multiplied by a weight of ``shape``."""
    if factor.ndim and factor.shape[-1] == features and factor.device == device:
        return
    raise ModelError(
        f"{name} has shape {tuple(factor.shape)} on {factor.device}: expected (..., {features}) on "
        f"{device}, for a weight of shape {tuple(shape)}"
    )


def rows_of(x: Tensor) -> int:
    """The number of vectors in ``x`` (..., features)."""
    return math.prod(x.shape[:-1])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed values for a case, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@functools.cache
def stored_case(rows: int = 320, cols: int = 640) -> tuple[Any, ...]:
    """A stored weight for a case, as an operator's arguments."""
    return weight_arguments(nf4.quantize(draw(rows, cols)))

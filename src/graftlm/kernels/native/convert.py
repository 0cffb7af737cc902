"""Storing a weight in 4 bits and restoring it (csrc/convert.cpp), with the reference's bits."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from graftlm.kernels.native.arguments import Stored
from graftlm.kernels.native.compiled import TYPES, kernels, takes
from graftlm.kernels.nf4.codebook import grid_codes
from graftlm.kernels.nf4.double_quant import GROUP_SIZE, mean_of
from graftlm.kernels.operator import implement
from graftlm.kernels.products import weight

__all__ = ["register"]


def register() -> None:
    """Add these kernels to their operators."""
    implement("nf4_quantize", "cpu", _quantize, accepts=_takes_first, label="native")
    implement("nf4_dequantize", "cpu", _dequantize, accepts=_takes_dtype, label="native")
    implement("nf4_double_quantize", "cpu", _double_quantize, accepts=_takes_first, label="native")


def _takes_first(first: Tensor, *_: Any) -> bool:
    return takes(first)


def _takes_dtype(codes: Tensor, *rest: Any) -> bool:
    return takes(codes, rest[-1])


def _quantize(w: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    flat = w.detach().contiguous()
    numel = flat.numel()
    codes = torch.empty((numel + 1) // 2, dtype=torch.uint8)
    absmax = torch.empty(-(-numel // block_size), dtype=torch.float32)
    kernels().quantize(
        src=flat.data_ptr(),
        type=TYPES[flat.dtype],
        numel=numel,
        block=block_size,
        codes=codes.data_ptr(),
        absmax=absmax.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return codes, absmax


def _double_quantize(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    absmax = absmax.contiguous()
    offset, grid = mean_of(absmax), _grid()
    codes = torch.empty(absmax.shape, dtype=torch.uint8)
    nested_absmax = torch.empty(-(-absmax.numel() // GROUP_SIZE), dtype=torch.float32)
    kernels().double_quantize(
        absmax=absmax.data_ptr(),
        blocks=absmax.numel(),
        mean=float(offset),
        grid=grid.data_ptr(),
        points=grid.numel(),
        codes=codes.data_ptr(),
        nested=nested_absmax.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return codes, nested_absmax, offset


@functools.cache
def _grid() -> Tensor:
    return grid_codes()


def _dequantize(codes: Tensor, *rest: Any) -> Tensor:
    """The maxima of the blocks are restored on the way and never stored."""
    *parts, dtype = rest
    w4 = weight(codes, *parts)
    stored = Stored(w4, 1, w4.numel)
    out = torch.empty(w4.shape, dtype=dtype)
    kernels().dequantize(
        *stored.arguments, dst=out.data_ptr(), type=TYPES[dtype], threads=torch.get_num_threads()
    )
    return out

"""From 4 bits back to a dense weight, with the bits of `graftlm.kernels.nf4.dequantize`.

    W_i = q[code_i] · c_block(i)

The scales of the blocks are restored on the way and never stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from graftlm.kernels.triton.launch import buffer, cdiv, on_device_of
from graftlm.kernels.triton.stored import block_scale, stored_arguments

__all__ = ["dequantize", "dequantize_into_buffer"]

ELEMENTS = 2048
"""Weights a program, at least one block."""


@triton.jit
def _dequantize(
    codes, absmax, nested, offset, levels, dynamic, out, numel,
    SIZE: tl.constexpr, COUNT: tl.constexpr, NESTED: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    scale = block_scale(absmax, nested, offset, dynamic, block, block * SIZE < numel, NESTED)
    first = block[:, None] * SIZE + 2 * tl.arange(0, SIZE // 2)[None, :]
    byte = tl.load(codes + first // 2, mask=first < numel, other=0).to(tl.int32)
    even = tl.load(levels + (byte >> 4)) * scale[:, None]
    odd = tl.load(levels + (byte & 15)) * scale[:, None]
    at = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    values = tl.interleave(even, odd)
    tl.store(out + at, values.to(out.dtype.element_ty), mask=at < numel)


def _launch(codes: Tensor, rest: Sequence[Any], out: Tensor) -> None:
    absmax, nested_absmax, offset, shape, block_size = rest
    parts, nested = stored_arguments(absmax, nested_absmax, offset)
    numel, count = math.prod(shape), max(1, ELEMENTS // block_size)
    with on_device_of(codes):
        _dequantize[(cdiv(numel, block_size * count),)](
            codes.contiguous(),
            *parts,
            out,
            numel,
            SIZE=block_size,
            COUNT=count,
            NESTED=nested,
            enable_fp_fusion=False,
        )


def dequantize(codes: Tensor, *rest: Any) -> Tensor:
    """The dense weight in a new tensor; arguments as of the operator ``nf4_dequantize``."""
    *stored, dtype = rest
    out = torch.empty(stored[3], dtype=dtype, device=codes.device)
    _launch(codes, stored, out)
    return out


def dequantize_into_buffer(codes: Tensor, *rest: Any) -> Tensor:
    """The same in memory that the next call overwrites."""
    *stored, dtype = rest
    out = buffer(codes, math.prod(stored[3]), dtype)
    _launch(codes, stored, out)
    return out.view(stored[3])

"""Blockwise quantisation to 4-bit NormalFloat, with the bits of `graftlm.kernels.nf4.quantize`.

    c = max |X|,   code_i = the number of midpoints below X_i / c      for each block X

A program takes whole blocks, as pairs of neighbours, since two codes make a byte. Division is
rounded as IEEE 754 says, and products are not fused with sums: near a midpoint the last bit
decides.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from graftlm.kernels.nf4.double_quant import GROUP_SIZE, mean_of
from graftlm.kernels.nf4.quantize import SMALLEST_ABSMAX
from graftlm.kernels.triton.launch import cdiv, on_device_of, table

__all__ = ["double_quantize", "quantize"]

SMALLEST = tl.constexpr(SMALLEST_ABSMAX)
ELEMENTS = 2048
"""Weights a program, at least one block."""


@triton.jit
def _codes(scaled, thresholds):
    code = tl.zeros_like(scaled).to(tl.int32)
    for index in tl.static_range(15):
        code += (scaled > tl.load(thresholds + index)).to(tl.int32)
    return code


@triton.jit
def _quantize(w, codes, absmax, thresholds, numel, SIZE: tl.constexpr, COUNT: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    first = block[:, None] * SIZE + 2 * tl.arange(0, SIZE // 2)[None, :]
    even = tl.load(w + first, mask=first < numel, other=0.0).to(tl.float32)
    odd = tl.load(w + first + 1, mask=first + 1 < numel, other=0.0).to(tl.float32)
    peak = tl.maximum(tl.max(tl.abs(even), 1), tl.max(tl.abs(odd), 1))
    missing = tl.max(((even != even) | (odd != odd)).to(tl.int32), 1)
    peak = tl.where(missing > 0, float("nan"), peak)  # `max` passes over NaN
    held = tl.maximum(peak, tl.full([COUNT], SMALLEST, tl.float32))
    short = (block + 1) * SIZE > numel
    inverse = tl.div_rn(tl.full([COUNT], 1.0, tl.float32), held)[:, None]
    whole = held[:, None] + tl.zeros_like(even)
    even = tl.where(short[:, None], tl.div_rn(even, whole), even * inverse)
    odd = tl.where(short[:, None], tl.div_rn(odd, whole), odd * inverse)
    byte = (_codes(even, thresholds) << 4) | _codes(odd, thresholds)
    tl.store(codes + first // 2, byte.to(tl.uint8), mask=first < numel)
    kept = tl.where(short, tl.where(missing > 0, peak, held), peak)
    tl.store(absmax + block, kept, mask=block * SIZE < numel)


@triton.jit
def _double_quantize(
    absmax, offset, grid, codes, nested, blocks, POINTS: tl.constexpr, GROUP: tl.constexpr
):
    group = tl.program_id(0).to(tl.int64)
    at = group * GROUP + tl.arange(0, GROUP)
    maxima = tl.load(absmax + at, mask=at < blocks, other=0.0)
    rest = tl.where(at < blocks, maxima - tl.load(offset), 0.0)
    peak = tl.max(tl.abs(rest), 0)
    scaled = rest * tl.div_rn(tl.full([GROUP], 1.0, tl.float32), peak + tl.zeros_like(rest))
    spread = scaled == scaled  # 0 / 0 in a group without spread takes the grid's first point
    scaled = tl.minimum(tl.maximum(scaled, -1.0), 1.0)
    point = ((scaled + 1.0) * 0.5 * (POINTS - 1) + 0.5).to(tl.int32)
    code = tl.load(grid + tl.where(spread, point, 0))
    tl.store(codes + at, code, mask=at < blocks)
    tl.store(nested + group, peak)


def quantize(w: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """The codes and the float32 block maxima; a maximum is NaN where the block holds one."""
    flat = w.detach().contiguous().view(-1)
    numel = flat.numel()
    codes = flat.new_empty((numel + 1) // 2, dtype=torch.uint8)
    absmax = flat.new_empty(cdiv(numel, block_size), dtype=torch.float32)
    count = max(1, ELEMENTS // block_size)
    with on_device_of(flat):
        _quantize[(cdiv(absmax.numel(), count),)](
            flat,
            codes,
            absmax,
            table("thresholds", flat.device),
            numel,
            SIZE=block_size,
            COUNT=count,
            enable_fp_fusion=False,
        )
    return codes, absmax


def double_quantize(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """8-bit codes, nested maxima and the offset of block maxima."""
    absmax = absmax.contiguous()
    offset, grid = mean_of(absmax), table("grid", absmax.device)
    codes = torch.empty_like(absmax, dtype=torch.uint8)
    nested = absmax.new_empty(cdiv(absmax.numel(), GROUP_SIZE))
    with on_device_of(absmax):
        _double_quantize[(nested.numel(),)](
            absmax,
            offset,
            grid,
            codes,
            nested,
            absmax.numel(),
            POINTS=grid.numel(),
            GROUP=GROUP_SIZE,
            enable_fp_fusion=False,
        )
    return codes, nested, offset

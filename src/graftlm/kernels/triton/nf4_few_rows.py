"""The product of a few rows with a weight stored in 4 bits, as in decoding: ``y = x Wᵀ + b``.

Its time is that of reading the codes, half a byte a weight, once for all rows. A program computes
some outputs: it goes along the inputs, a few blocks at a time, and dequantises in registers. One
row is a sum of float32 products; up to 16 are tiles of a matrix product, with W in the type of x.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from graftlm.kernels.triton.launch import cdiv, on_device_of, precision
from graftlm.kernels.triton.stored import block_scale, stored_arguments

__all__ = ["MOST_ROWS", "few_rows", "fits"]

MOST_ROWS = 16
"""Rows of one tile of a matrix product."""
LARGEST_BLOCK = 256
"""A tile along the inputs is at least one block; of larger ones too few would fit."""
ALONG = 256
"""Inputs at a time, at least one block."""


@triton.jit
def _pair_of_weights(
    codes, absmax, nested, offset, levels, dynamic, o, k, outputs, inputs,
    SIZE: tl.constexpr, BLOCKS: tl.constexpr, NESTED: tl.constexpr,
):  # fmt: skip
    """Weights at even and odd inputs from ``k``: (outputs, BLOCKS, SIZE / 2), float32."""
    block = (o[:, None] * inputs + k) // SIZE + tl.arange(0, BLOCKS)[None, :]
    inside = (o < outputs)[:, None] & (k + SIZE * tl.arange(0, BLOCKS) < inputs)[None, :]
    scale = block_scale(absmax, nested, offset, dynamic, block, inside, NESTED)[:, :, None]
    byte = block[:, :, None] * (SIZE // 2) + tl.arange(0, SIZE // 2)[None, None, :]
    code = tl.load(codes + byte, mask=inside[:, :, None], other=0).to(tl.int32)
    return tl.load(levels + (code >> 4)) * scale, tl.load(levels + (code & 15)) * scale


@triton.jit
def _one_row(
    x, codes, absmax, nested, offset, levels, dynamic, bias, y, outputs, inputs,
    SIZE: tl.constexpr, BLOCKS: tl.constexpr, NESTED: tl.constexpr, BIAS: tl.constexpr,
    OUT: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0).to(tl.int64) * OUT + tl.arange(0, OUT)
    total = tl.zeros([OUT], tl.float32)
    place = SIZE * tl.arange(0, BLOCKS)[:, None] + 2 * tl.arange(0, SIZE // 2)[None, :]
    for k in range(0, inputs, SIZE * BLOCKS):
        even, odd = _pair_of_weights(
            codes, absmax, nested, offset, levels, dynamic, o, k, outputs, inputs,
            SIZE, BLOCKS, NESTED,
        )  # fmt: skip
        at = k + place
        x_even = tl.load(x + at, mask=at < inputs, other=0.0).to(tl.float32)
        x_odd = tl.load(x + at + 1, mask=at + 1 < inputs, other=0.0).to(tl.float32)
        products = even * x_even[None, :, :] + odd * x_odd[None, :, :]
        total += tl.sum(tl.sum(products, 2), 1)
    if BIAS:
        total += tl.load(bias + o, mask=o < outputs, other=0.0).to(tl.float32)
    tl.store(y + o, total.to(y.dtype.element_ty), mask=o < outputs)


@triton.jit
def _some_rows(
    x, codes, absmax, nested, offset, levels, dynamic, bias, y, rows, outputs, inputs,
    SIZE: tl.constexpr, BLOCKS: tl.constexpr, NESTED: tl.constexpr, BIAS: tl.constexpr,
    OUT: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0).to(tl.int64) * OUT + tl.arange(0, OUT)
    row = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, OUT], tl.float32)
    for k in range(0, inputs, SIZE * BLOCKS):
        even, odd = _pair_of_weights(
            codes, absmax, nested, offset, levels, dynamic, o, k, outputs, inputs,
            SIZE, BLOCKS, NESTED,
        )  # fmt: skip
        weight = tl.reshape(tl.interleave(even, odd), [OUT, BLOCKS * SIZE])
        at = k + tl.arange(0, BLOCKS * SIZE)
        known = (row < rows)[:, None] & (at < inputs)[None, :]
        tile = tl.load(x + row[:, None] * inputs + at[None, :], mask=known, other=0.0)
        total = tl.dot(tile, tl.trans(weight.to(tile.dtype)), total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    place = y + row[:, None] * outputs + o[None, :]
    known = (row < rows)[:, None] & (o < outputs)[None, :]
    tl.store(place, total.to(y.dtype.element_ty), mask=known)


def fits(rows: int, inputs: int, block_size: int) -> bool:
    """Whether the kernel takes so many rows of a weight whose blocks do not cross its rows."""
    small = rows == 1 or (rows <= MOST_ROWS and block_size <= LARGEST_BLOCK)
    return rows > 0 and small and inputs % block_size == 0


def few_rows(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    """``x Wᵀ + b`` for the sizes that `fits`; arguments as of ``nf4_linear`` without compute."""
    absmax, nested_absmax, offset, (outputs, inputs), block_size, bias = rest
    parts, nested = stored_arguments(absmax, nested_absmax, offset)
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], outputs))
    rows = x.numel() // inputs
    sizes = {
        "SIZE": block_size,
        "BLOCKS": max(1, (ALONG if rows == 1 else 128) // block_size),
        "NESTED": nested,
        "BIAS": bias is not None,
    }
    tensors = (x, codes.contiguous(), *parts, x if bias is None else bias.contiguous(), y)
    with on_device_of(x):
        if rows == 1:
            out = max(1, min(8, 4096 // (sizes["SIZE"] * sizes["BLOCKS"])))
            _one_row[(cdiv(outputs, out),)](*tensors, outputs, inputs, **sizes, OUT=out)
        else:
            _some_rows[(cdiv(outputs, 32),)](
                *tensors,
                rows,
                outputs,
                inputs,
                **sizes,
                OUT=32,
                ROWS=MOST_ROWS,
                PRECISION=precision(),
                num_stages=2,
            )
    return y

"""Rotary position embedding and its gradient (arXiv 2104.09864), in one pass.

    forward    y₁ = x₁ cos₁ − x₂ sin₁,     y₂ = x₂ cos₂ + x₁ sin₂
    BACK       y₁ = x₁ cos₁ + x₂ sin₂,     y₂ = x₂ cos₂ − x₁ sin₁

A program takes some heads of one position, which share its cos and sin. It reads and writes them
where they are: a projection leaves the heads of a position side by side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from graftlm.kernels.triton.launch import cdiv, on_device_of, power_of_two

__all__ = ["rotary"]

PAIRS = 2048
"""Pairs of numbers a program, at least one head."""


@triton.jit
def _turn(
    x,
    cos,
    sin,
    y,
    heads,
    length,
    half,
    x_row,
    x_head,
    x_place,
    y_row,
    y_head,
    y_place,
    cos_row,
    cos_place,
    sin_row,
    sin_place,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) // length
    place = tl.program_id(0).to(tl.int64) % length
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    column = tl.arange(0, HALF)
    inside = column < half
    c1 = cos + row * cos_row + place * cos_place + column
    s1 = sin + row * sin_row + place * sin_place + column
    cos1 = tl.load(c1, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos2 = tl.load(c1 + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin1 = tl.load(s1, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin2 = tl.load(s1 + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    known = (head < heads)[:, None] & inside[None, :]
    at = x + row * x_row + place * x_place + head[:, None] * x_head + column[None, :]
    left = tl.load(at, mask=known, other=0.0).to(tl.float32)
    right = tl.load(at + half, mask=known, other=0.0).to(tl.float32)
    if BACK:
        first, second = left * cos1 + right * sin2, right * cos2 - left * sin1
    else:
        first, second = left * cos1 - right * sin1, right * cos2 + left * sin2
    to = y + row * y_row + place * y_place + head[:, None] * y_head + column[None, :]
    tl.store(to, first.to(y.dtype.element_ty), mask=known)
    tl.store(to + half, second.to(y.dtype.element_ty), mask=known)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """Y (B, H, L, D) in the type of ``x``; arguments as of the operator."""
    x, cos, sin = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, cos, sin))
    y = torch.empty_like(x)
    rows, heads, length, width = x.shape
    if not x.numel():
        return y
    across = power_of_two(width // 2)
    down = min(power_of_two(heads), max(1, PAIRS // across))
    of_row = 0 if len(cos) == 1 else 1
    with on_device_of(x):
        _turn[(rows * length, cdiv(heads, down))](
            x,
            cos,
            sin,
            y,
            heads,
            length,
            width // 2,
            x.stride(0),
            x.stride(1),
            x.stride(2),
            y.stride(0),
            y.stride(1),
            y.stride(2),
            of_row * cos.stride(0),
            cos.stride(1),
            of_row * sin.stride(0),
            sin.stride(1),
            BACK=back,
            HEADS=down,
            HALF=across,
        )
    return y

"""RMS norm and its gradient for the input (arXiv 1910.07467), a row a pass.

    y  = x · r · (w + c),     r = 1 / √(mean(x²) + ε)
    dx = r · (g − x · r² · mean(g · x)),     g = dy · (w + c)

A program has whole rows in registers, so x is read once. Of narrow rows, as of the norms of queries
and keys, it takes several.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from graftlm.kernels.triton.launch import cdiv, on_device_of, power_of_two

__all__ = ["rms_norm", "rms_norm_backward"]

ELEMENTS = 1024
"""Numbers a program, at least one row."""


@triton.jit
def _norm(x, weight, y, rstd, shift, eps, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    known = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    values = tl.load(x + at, mask=known, other=0.0).to(tl.float32)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + shift
    r = 1.0 / tl.sqrt_rn(tl.sum(values * values, 1) / width + eps)
    tl.store(rstd + row, r, mask=row < rows)
    tl.store(y + at, (values * r[:, None] * w[None, :]).to(y.dtype.element_ty), mask=known)


@triton.jit
def _gradient(dy, x, weight, rstd, dx, shift, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    known = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    values = tl.load(x + at, mask=known, other=0.0).to(tl.float32)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + shift
    g = tl.load(dy + at, mask=known, other=0.0).to(tl.float32) * w[None, :]
    r = tl.load(rstd + row, mask=row < rows, other=0.0)
    pull = tl.sum(g * values, 1) / width * r * r
    slope = r[:, None] * (g - values * pull[:, None])
    tl.store(dx + at, slope.to(dx.dtype.element_ty), mask=known)


def _tiles(rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    across = power_of_two(width)
    down = max(1, ELEMENTS // across)
    warps = 4 if across <= 4096 else 8 if across <= 8192 else 16
    return (cdiv(rows, down),), {"ROWS": down, "WIDTH": across, "num_warps": warps}


def rms_norm(x: Tensor, weight: Tensor, shift: float, eps: float) -> tuple[Tensor, Tensor]:
    """Y (..., D) in the type of ``x``, and r (...) in float32."""
    x, weight = x.contiguous(), weight.detach().contiguous()
    y, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
    grid, sizes = _tiles(rstd.numel(), x.shape[-1])
    if x.numel():
        with on_device_of(x):
            _norm[grid](x, weight, y, rstd, shift, eps, rstd.numel(), x.shape[-1], **sizes)
    return y, rstd


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, shift: float) -> Tensor:
    """Dx (..., D) in the type of ``x``."""
    dy, x, weight = dy.contiguous(), x.contiguous(), weight.detach().contiguous()
    rstd, dx = rstd.contiguous(), torch.empty_like(x)
    grid, sizes = _tiles(rstd.numel(), x.shape[-1])
    if x.numel():
        with on_device_of(x):
            _gradient[grid](dy, x, weight, rstd, dx, shift, rstd.numel(), x.shape[-1], **sizes)
    return dx

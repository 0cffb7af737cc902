"""The two thin products of LoRA (arXiv 2106.09685).

    u  = s · x Fᵀ       `down`    x (N, n), F [r, n] → u (N, r)      u = x Aᵀ,  v = s · dy B
    y += s · u Fᵀ       `add`     u (N, r), F [n, r] → y (N, n)      y += s · u Bᵀ,  dx += v A

`down` reads x once, `add` reads and writes y once; that is their time. A and B stay float32 in
memory and are rounded in the kernel to the type of x. A factor may be a transposed view, so the
same kernels serve the forward and the backward pass.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from graftlm.kernels.triton.launch import cdiv, on_device_of, power_of_two, precision

__all__ = ["add_", "down"]


@triton.jit
def _down(
    x, factor, u, scaling, rows, rank, features, by_rank, by_feature,
    ROWS: tl.constexpr, RANK: tl.constexpr, ALONG: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    r = tl.arange(0, RANK)
    total = tl.zeros([ROWS, RANK], tl.float32)
    for start in range(0, features, ALONG):
        k = start + tl.arange(0, ALONG)
        known = (row < rows)[:, None] & (k < features)[None, :]
        tile = tl.load(x + row[:, None] * features + k[None, :], mask=known, other=0.0)
        inside = (k < features)[:, None] & (r < rank)[None, :]
        place = factor + k[:, None] * by_feature + r[None, :] * by_rank
        thin = tl.load(place, mask=inside, other=0.0).to(tile.dtype)
        total = tl.dot(tile, thin, total, input_precision=PRECISION)
    known = (row < rows)[:, None] & (r < rank)[None, :]
    value = (total * scaling).to(u.dtype.element_ty)
    tl.store(u + row[:, None] * rank + r[None, :], value, mask=known)


@triton.jit
def _add(
    y, u, factor, scaling, rows, rank, features, by_feature, by_rank,
    ROWS: tl.constexpr, RANK: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    r = tl.arange(0, RANK)
    known = (row < rows)[:, None] & (r < rank)[None, :]
    thin = tl.load(u + row[:, None] * rank + r[None, :], mask=known, other=0.0)
    inside = (r < rank)[:, None] & (n < features)[None, :]
    place = factor + r[:, None] * by_rank + n[None, :] * by_feature
    wide = tl.load(place, mask=inside, other=0.0).to(thin.dtype)
    update = tl.dot(thin, wide, input_precision=PRECISION) * scaling
    known = (row < rows)[:, None] & (n < features)[None, :]
    place = y + row[:, None] * features + n[None, :]
    sum_ = tl.load(place, mask=known, other=0.0).to(tl.float32) + update
    tl.store(place, sum_.to(y.dtype.element_ty), mask=known)


def down(x: Tensor, factor: Tensor, scaling: float = 1.0) -> Tensor:
    """``scaling · x factorᵀ``: (..., n), [r, n] of any strides → (..., r) in the type of x."""
    x = x.contiguous()
    rank, features = factor.shape
    u = x.new_empty((*x.shape[:-1], rank))
    rows = u.numel() // max(rank, 1)
    if not u.numel():
        return u
    with on_device_of(x):
        _down[(cdiv(rows, 32),)](
            x,
            factor,
            u,
            scaling,
            rows,
            rank,
            features,
            factor.stride(0),
            factor.stride(1),
            ROWS=32,
            RANK=power_of_two(rank, 16),
            ALONG=64 if rank <= 64 else 32,
            PRECISION=precision(),
            num_stages=2,
        )
    return u


def add_(y: Tensor, u: Tensor, factor: Tensor, scaling: float = 1.0) -> Tensor:
    """``y += scaling · u factorᵀ``, in place.

    Args:
        y: (..., n), contiguous.
        u: (..., r).
        factor: [n, r], of any strides.
        scaling: s.
    """
    u = u.contiguous()
    features, rank = factor.shape
    rows = y.numel() // max(features, 1)
    if not y.numel() or not rank:
        return y
    with on_device_of(y):
        _add[(cdiv(rows, 64), cdiv(features, 64))](
            y,
            u,
            factor,
            scaling,
            rows,
            rank,
            features,
            factor.stride(0),
            factor.stride(1),
            ROWS=64,
            RANK=power_of_two(rank, 16),
            FEATURES=64,
            PRECISION=precision(),
            num_stages=1,
        )
    return y

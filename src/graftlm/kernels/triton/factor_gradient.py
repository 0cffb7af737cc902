"""The gradient of a factor of a low-rank update: ``s · thinᵀ wide``, a sum over all rows.

    dA = vᵀ x     [r, in]        dB = s · dyᵀ u     [out, r]

The result is small and the rows are many, so the rows are cut into parts that are computed at the
same time. The parts are then added in order: the result is the same in every run, which sums by
atomic operations would not be.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from graftlm.kernels.triton.launch import cdiv, on_device_of, power_of_two, precision

__all__ = ["factor_gradient"]

PARTS = 16
"""At most so many parts of the rows."""
LEAST_ROWS = 256
"""Rows of a part, at least."""
FEATURES = 64


@triton.jit
def _part(
    thin, wide, out, scaling, rows, rank, features, part_rows, by_rank, by_feature,
    RANK: tl.constexpr, FEATURES: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    part = tl.program_id(1).to(tl.int64)
    r = tl.arange(0, RANK)
    total = tl.zeros([RANK, FEATURES], tl.float32)
    for start in range(0, part_rows, ROWS):
        inner = start + tl.arange(0, ROWS)
        row = part * part_rows + inner
        known = (inner < part_rows) & (row < rows)
        inside = known[None, :] & (r < rank)[:, None]
        left = tl.load(thin + row[None, :] * rank + r[:, None], mask=inside, other=0.0)
        inside = known[:, None] & (n < features)[None, :]
        right = tl.load(wide + row[:, None] * features + n[None, :], mask=inside, other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    place = out + part * rank * features + r[:, None] * by_rank + n[None, :] * by_feature
    inside = (r < rank)[:, None] & (n < features)[None, :]
    tl.store(place, total * scaling, mask=inside)


def factor_gradient(
    thin: Tensor, wide: Tensor, scaling: float, turned: bool, compute: str
) -> Tensor:
    """``scaling · thinᵀ wide`` over all rows, [r, n], or turned [n, r]; float32."""
    thin, wide = thin.contiguous(), wide.contiguous()
    rank, features = thin.shape[-1], wide.shape[-1]
    shape = (features, rank) if turned else (rank, features)
    rows = wide.numel() // max(features, 1)
    if not rows or not rank * features:
        return wide.new_zeros(shape, dtype=torch.float32)
    parts = max(1, min(PARTS, rows // LEAST_ROWS))
    out = wide.new_empty((parts, *shape), dtype=torch.float32)
    by_rank, by_feature = (1, rank) if turned else (features, 1)
    with on_device_of(wide):
        _part[(cdiv(features, FEATURES), parts)](
            thin,
            wide,
            out,
            scaling,
            rows,
            rank,
            features,
            cdiv(rows, parts),
            by_rank,
            by_feature,
            RANK=power_of_two(rank, 16),
            FEATURES=FEATURES,
            ROWS=32,
            PRECISION=precision(),
            num_stages=2,
        )
    return out[0] if parts == 1 else out.sum(0)

"""OLoRA: start from an orthonormal basis of the weight's columns (arXiv 2406.01775).

W = Q R                         Q [out, k] orthonormal, R [k, in]
A₀ = R_r                        the first r rows
B₀ = Q_r                        the first r columns
y = (W - s · B₀ A₀) x + s · B A x

W  weight      A₀, B₀  the start      s  the adapter's scaling      r  rank
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["factors"]


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A₀ [r, in] and B₀ [out, r] of ``weight`` [out, in] in float32."""
    Q, R = torch.linalg.qr(weight)
    return R[:rank], Q[:, :rank]

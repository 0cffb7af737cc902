"""A start in which A and B are both random and their product is zero.

    X [r, r] normal, X = Q R        Q₁, Q₂: the rows 0, 2, … and 1, 3, … of Q, so that Q₂ Q₁ᵀ = 0
    A = (M Q₁)ᵀ / 10                M [in, r/2] normal
    B = N Q₂ / 10                   N [out, r/2] normal
    B A = N Q₂ Q₁ᵀ Mᵀ / 100 = 0

Source: https://datta0.github.io/posts/rethink-lora-init/ and PEFT's ``orthogonal``. The random
numbers are drawn in PEFT's order, so that one seed gives the same adapter in both.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fill"]

SIZE = 0.1


def fill(A: Tensor, B: Tensor) -> None:
    """Draw A [r, in] and B [out, r], in place; r is even."""
    rank = A.shape[0]
    Q = torch.linalg.qr(torch.randn(rank, rank)).Q
    M = torch.randn(A.shape[1], rank // 2)
    N = torch.randn(rank // 2, B.shape[0])
    A.copy_((M @ Q[0::2]).T * SIZE)
    B.copy_((N.T @ Q[1::2]) * SIZE)

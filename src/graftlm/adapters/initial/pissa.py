"""PiSSA: train the largest singular values of the weight itself (arXiv 2404.02948).

    W = U S Vᵀ                      [out, k] [k] [k, in]
    A₀ = √(S_r / s) V_rᵀ            the first r of them
    B₀ = U_r √(S_r / s)             so that s · B₀ A₀ is the best approximation of rank r
    y = (W - s · B₀ A₀) x + s · B A x

`pissa_niter_K` takes a randomised decomposition with K power iterations (section 3 of the paper; in
seconds where the exact one takes minutes).

    W  weight      A₀, B₀  the start      s  scaling      r  rank
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["factors"]


def factors(
    weight: Tensor, rank: int, scaling: float, iterations: int | None = None
) -> tuple[Tensor, Tensor]:
    """A₀ [r, in] and B₀ [out, r].

    Args:
        weight: [out, in] in float32.
        rank: r.
        scaling: s.
        iterations: of the randomised decomposition; ``None``: the exact one.
    """
    if iterations is None:
        U, S, Vt = torch.linalg.svd(weight, full_matrices=False)
        U, S, Vt = U[:, :rank], S[:rank], Vt[:rank]
    else:
        U, S, V = torch.svd_lowrank(weight, rank, niter=iterations)
        Vt = V.T
    root = (S / scaling).sqrt()
    return root[:, None] * Vt, U * root

"""Cyclic descent on the codes of an NF4 weight, towards a target weight.

For typical inputs X, with H = Xᵀ X + λ I and the scales fixed, the codes are changed to lower

    E = Σ_rows (ŵ - t) H (ŵ - t)ᵀ            t: a row of the target T, ŵ: of the stored weight.

With the other columns fixed, E is least at  ŵ_j - g_j / H_jj,  where g = (Ŵ - T) H; column j takes
the level nearest to it. E never rises. A sweep visits each column once, in falling order of H_jj.

**A small update and where to start.** Let T = Q⁻¹Q(W) + Δ with Δ far below a step of the grid. From
Q(W), no weight gains by moving, and the update is lost. Q(W + Δ) is a better start: W lies anywhere
between two levels, so rounding moves the right number of weights, and the whole of Δ is there on
average, with much noise. Descent then takes off the noise and leaves the update.

    H  gram, damped        g  slope, (in, out)        Ŵ  dense, (in, out)        T  target
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftlm.kernels.nf4.codebook import nf4_levels, nf4_thresholds

__all__ = ["refine"]

COLUMNS = 128
"""Columns whose changes are collected before they are spread over the rest in one product."""
FEW = 1e-3
"""A sweep that changes a smaller share of the codes is the last."""


@torch.no_grad()
def refine(codes: Tensor, scales: Tensor, target: Tensor, gram: Tensor, sweeps: int) -> Tensor:
    """Change codes so that the weight's products with typical inputs are nearer to the target's.

    Args:
        codes: (out, in) uint8, to start from.
        scales: (out, in) float32, the scale of each weight as it is decoded; none is zero.
        target: (out, in) float32.
        gram: (in, in), damped.
        sweeps: at most so many.

    Returns:
        The codes, (out, in) uint8.
    """
    order = torch.argsort(gram.diagonal(), descending=True)
    gram = gram[order][:, order]
    # Columns are rows of the transposed matrices: contiguous.
    scale, goal, code = (m[:, order].T.contiguous() for m in (scales, target, codes))
    levels, thresholds = nf4_levels(codes.device), nf4_thresholds(codes.device)
    dense = levels[code.int()] * scale
    for _ in range(sweeps):
        slope, changed = gram @ (dense - goal), 0
        for start in range(0, len(gram), COLUMNS):
            block = slice(start, min(start + COLUMNS, len(gram)))
            near, here = gram[block, block], slope[block].clone()
            moved = torch.zeros_like(here)
            for j in range(len(near)):
                best = dense[start + j] - here[j] / near[j, j]
                new = torch.bucketize(best / scale[start + j], thresholds)
                torch.sub(levels[new] * scale[start + j], dense[start + j], out=moved[j])
                changed += int(torch.count_nonzero(moved[j]))
                code[start + j] = new
                here[j + 1 :].addr_(near[j + 1 :, j], moved[j])
            dense[block] += moved
            slope.addmm_(gram[:, block], moved)
        if changed < FEW * code.numel():
            break
    there = torch.empty_like(code)
    there[order] = code
    return there.T.contiguous()

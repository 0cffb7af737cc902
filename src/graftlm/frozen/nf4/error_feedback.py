"""NF4 by second-order error feedback (GPTQ, arXiv 2210.17323) on bitsandbytes' blocks.

Rounding to the nearest level minimises ‖W - Ŵ‖². What counts is the layer's output, so this
minimises, over typical inputs X (tokens, in),

    ‖X Wᵀ - X Ŵᵀ‖² = Σ_rows (w - ŵ) H (w - ŵ)ᵀ,     H = Xᵀ X + λ I.

A column is rounded; its error is then spread over the columns that are not rounded yet, with the
weights that the inverse of H gives (the paper's equations 2 and 3):

    e_j = (w_j - ŵ_j) / U_jj,      w_k ← w_k - e_j U_jk  for the columns k after j,

where U is the upper Cholesky factor of H⁻¹. The columns come in falling order of H_jj.

    paper   here
    W       rest, (out, in), its columns in the order of rounding
    H       gram, damped
    U       factor

**The scales are fixed first**, because a block of the stored form is 64 consecutive weights of the
flattened matrix, and double quantisation looks at all blocks together. A scale need not be the
block's maximum: `search` takes, of `SHRINK` times the maximum, the one whose nearest levels have
the least Σ_j H_jj (w_j - ŵ_j)². Rounding uses the scale as it is decoded, after its own
quantisation.

The codes are refined at last by `refine.py`. A merge onto a 4-bit base uses only that: it starts
from given codes and scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftlm.frozen.nf4.refine import refine
from graftlm.kernels.nf4.codebook import nf4_levels, nf4_thresholds
from graftlm.kernels.nf4.double_quant import block_scales, double_quantize
from graftlm.kernels.nf4.quantize import assemble, check, pack, unpack
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["feedback"]

DAMPING = 0.01
"""λ as a share of the mean of H's diagonal."""
SHRINK = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76)
SWEEPS, SWEEPS_FROM_START = 2, 6
COLUMNS = 128
"""Columns whose errors are collected before they are spread over the rest in one product."""


@torch.no_grad()
def feedback(
    weight: Tensor,
    gram: Tensor,
    block_size: int,
    double_quant: bool,
    dtype: torch.dtype,
    start: NF4Weight | None = None,
) -> NF4Weight:
    """``weight`` in NF4, its errors spread so that products with typical inputs change little.

    Args:
        weight: (out, in), float32.
        gram: (in, in), Xᵀ X of typical inputs.
        block_size: weights that share one scale.
        double_quant: whether the scales are stored in 8 bits.
        dtype: the type that the stored weight is decoded to.
        start: a stored weight to start from; its scales are kept.
    """
    check(weight, block_size)
    weight, gram = weight.float(), _damped(gram)
    stored = start
    if stored is None:
        scales = search(weight, gram.diagonal(), block_size)
        # NaN and infinity are refused here, as for plain rounding.
        shrink = double_quantize if double_quant else None
        stored = assemble(weight, torch.empty(0, dtype=torch.uint8), scales, block_size, shrink)
    decoded = _held(_spread(block_scales(stored), weight.shape, block_size))
    if start is None:
        codes = _rounded(weight, decoded, gram)
        codes = refine(codes, decoded, weight, gram, SWEEPS)
    else:
        codes = refine(unpack(start.codes, weight.shape), decoded, weight, gram, SWEEPS_FROM_START)
    return NF4Weight(
        pack(codes.reshape(-1)),
        stored.absmax,
        stored.nested_absmax,
        stored.offset,
        stored.shape,
        dtype,
        stored.block_size,
    )


def search(weight: Tensor, importance: Tensor, block_size: int) -> Tensor:
    """The scale of each block, float32 ``[blocks]``.

    Args:
        weight: (out, in).
        importance: (in,), how much an error in each column counts.
        block_size: weights that share one scale.
    """
    flat = weight.reshape(-1)
    short = -flat.numel() % block_size
    values = torch.nn.functional.pad(flat, (0, short)).view(-1, block_size)
    counts = importance.expand(weight.shape).reshape(-1)
    counts = torch.nn.functional.pad(counts, (0, short)).view(-1, block_size)
    peak = values.abs().amax(dim=1)
    best, least = peak, torch.full_like(peak, float("inf"))
    levels, thresholds = nf4_levels(weight.device), nf4_thresholds(weight.device)
    for factor in SHRINK:
        scale = peak * factor
        nearest = levels[torch.bucketize(values / _held(scale)[:, None], thresholds)]
        error = (nearest.mul_(scale[:, None]) - values).square_().mul_(counts).sum(dim=1)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def _rounded(weight: Tensor, scales: Tensor, gram: Tensor) -> Tensor:
    """uint8 (out, in): the code of each weight."""
    order = torch.argsort(gram.diagonal(), descending=True)
    factor = _factor(gram[order][:, order])
    rest, scale = weight[:, order], scales[:, order]
    levels, thresholds = nf4_levels(weight.device), nf4_thresholds(weight.device)
    columns = rest.shape[1]
    # Columns are rows of the transposed matrices: contiguous.
    rest, scale = rest.T.contiguous(), scale.T.contiguous()
    codes = torch.empty(rest.shape, dtype=torch.uint8, device=weight.device)
    for start in range(0, columns, COLUMNS):
        stop = min(start + COLUMNS, columns)
        block, errors = rest[start:stop], torch.empty_like(rest[start:stop])
        near = factor[start:stop, start:stop]
        for j in range(stop - start):
            code = torch.bucketize(block[j] / scale[start + j], thresholds)
            codes[start + j] = code
            error = (block[j] - levels[code] * scale[start + j]) / near[j, j]
            block[j + 1 :].addr_(near[j, j + 1 :], error, alpha=-1)
            errors[j] = error
        rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    there = torch.empty_like(codes)
    there[order] = codes
    return there.T.contiguous()


def _damped(gram: Tensor) -> Tensor:
    """H = Xᵀ X + λ I, in float32."""
    mean = float(gram.diagonal().mean())
    return gram + (DAMPING * mean if mean > 0 else 1.0) * torch.eye(len(gram), device=gram.device)


def _factor(gram: Tensor) -> Tensor:
    """U, the upper Cholesky factor of the inverse of ``gram``."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram.double()))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor


def _spread(scales: Tensor, shape: torch.Size, block_size: int) -> Tensor:
    """The scale of each weight, (out, in)."""
    return scales.repeat_interleave(block_size)[: shape.numel()].view(shape)


def _held(scale: Tensor) -> Tensor:
    """``scale`` with zeros replaced, so that it can divide; all levels of a zero scale are zero."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)

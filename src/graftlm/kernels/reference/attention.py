"""Attention by blocks of positions in plain PyTorch, in float32, one block at a time.

    S  = s · Q Kᵀ + M        lse_i = log Σ_j exp S_ij        P = exp(S − lse)        Y = P V

    dV = Pᵀ dY               dS = P ∘ (dY Vᵀ − rowsum(dY ∘ Y))
    dQ = s · dS K            dK = s · dSᵀ Q

A position that attends to nothing has lse = −∞, a result of zero and no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graftlm.kernels.mask_blocks import Block

__all__ = [
    "added_mask",
    "backward",
    "blocks_of",
    "empty_result",
    "empty_slopes",
    "factors",
    "forward",
    "part",
    "summed_heads",
]


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, numbers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Y in the type and order of `empty_result`, and lse (B, H, L) float32."""
    y, lse = empty_result(q)
    for block in blocks_of(numbers):
        query, key, value = factors(q, k, v, block)
        scores = _scores(query, key, added_mask(mask, block, q, k), scale, block)
        sums = scores.logsumexp(-1)
        part(y, block).copy_(_probabilities(scores, sums) @ value)
        lse[:, :, block.start : block.stop] = sums
    return y, lse


def backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    y: Tensor,
    lse: Tensor,
    scale: float,
    numbers: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, each in its type and order in memory."""
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for block in blocks_of(numbers):
        query, key, value = factors(q, k, v, block)
        slope, result = part(dy, block).float(), part(y, block).float()
        scores = _scores(query, key, added_mask(mask, block, q, k), scale, block)
        p = _probabilities(scores, lse[:, :, block.start : block.stop])
        pull = (slope * result).sum(-1, keepdim=True)
        ds = p * (slope @ value.mT - pull) * scale
        for whole, piece in zip(gradients, (ds @ key, ds.mT @ query, p.mT @ slope), strict=True):
            part(whole, block).copy_(summed_heads(piece, whole.shape[1]))
    return gradients


def empty_result(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Empty tensors for y, with positions before heads in memory for the next layer, and lse."""
    rows, heads, length, size = q.shape
    y = q.new_empty(rows, length, heads, size).transpose(1, 2)
    return y, q.new_empty(rows, heads, length, dtype=torch.float32)


def empty_slopes(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors for the gradients of q, k and v."""
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def blocks_of(numbers: Sequence[int]) -> list[Block]:
    """The blocks from three numbers each: start, stop, causal or not."""
    thirds = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return [Block(start, stop, bool(causal)) for start, stop, causal in thirds]


def part(t: Tensor, block: Block) -> Tensor:
    """The positions of a block."""
    return t[:, :, block.start : block.stop]


def factors(q: Tensor, k: Tensor, v: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """A block of each in float32, with a head of k and v for each of q."""
    query, key, value = (part(t, block).float() for t in (q, k, v))
    return query, _repeated_heads(key, q.shape[1]), _repeated_heads(value, q.shape[1])


def summed_heads(gradient: Tensor, heads: int) -> Tensor:
    """The gradient of q, k or v, summed over the heads of q that share one."""
    batch, all_heads, positions, size = gradient.shape
    if all_heads == heads:
        return gradient
    return gradient.reshape(batch, heads, -1, positions, size).sum(2)


def added_mask(mask: Tensor | None, block: Block, q: Tensor, k: Tensor) -> Tensor | None:
    """The block's part of the mask as float32 numbers to add to the scores."""
    if mask is None or block.causal:
        return None
    mask = mask.expand(*mask.shape[:-2], q.shape[2], k.shape[2])
    piece = mask[..., block.start : block.stop, block.start : block.stop]
    if mask.dtype != torch.bool:
        return piece.float()
    return torch.zeros_like(piece, dtype=torch.float32).masked_fill_(~piece, float("-inf"))


def _repeated_heads(t: Tensor, heads: int) -> Tensor:
    """Each head of k or v once for every head of q that shares it; a single one is not copied."""
    return t[:, :, None].expand(-1, -1, heads // t.shape[1], -1, -1).flatten(1, 2)


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, block: Block) -> Tensor:
    scores = query @ key.mT * scale
    if block.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(later, float("-inf"))
    return scores if mask is None else scores + mask


def _probabilities(scores: Tensor, lse: Tensor) -> Tensor:
    """P; zero for a position that attends to nothing, where −∞ − (−∞) would be NaN."""
    return (scores - lse.masked_fill(lse == float("-inf"), 0.0)[..., None]).exp()

"""Chooses the next token of a row.

    p = softmax(logits / T), cut to the smallest set of tokens with p ≥ top_p in sum
    token: where the running sum of p passes a number drawn in [0, 1) by the row's own generator

A row draws from a generator of its own, so that its answer does not depend on the rows beside it.
Nucleus sampling: arXiv 1904.09751.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

__all__ = ["Sampling", "most_probable", "sampled"]

BLOCK = 512
"""Tokens whose maximum is looked for together."""
LIKELY = 2048
"""Tokens that are sorted first; the whole vocabulary only if they are not enough."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: only tokens of this much probability in sum; 1 takes all.
        seed: of the row's own generator.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def most_probable(logits: Tensor) -> Tensor:
    """The index of the first largest of each row, (rows, V) → (rows,).

    torch's `argmax` of bfloat16 takes as long as half of the product that made the logits. The
    maximum of blocks is quick; then one block of each row is searched.
    """
    rows, vocabulary = logits.shape
    whole = vocabulary // BLOCK * BLOCK
    if not whole:
        return logits.argmax(-1)
    blocks = logits[:, :whole].reshape(rows, -1, BLOCK)
    heights = blocks.amax(-1)
    block = heights.float().argmax(-1)
    inside = blocks[torch.arange(rows, device=logits.device), block].float().argmax(-1)
    best = block * BLOCK + inside
    if whole < vocabulary:
        rest, at = logits[:, whole:].float().max(-1)
        best = torch.where(rest > heights.float().amax(-1), whole + at, best)
    return best


def sampled(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token drawn from one row of logits, (V,)."""
    p = torch.softmax(logits.float().cpu() / sampling.temperature, -1)
    if sampling.top_p >= 1:
        return _drawn(p, generator)
    values, tokens = p.topk(min(LIKELY, len(p)))
    if float(values.sum()) < sampling.top_p:
        values, tokens = p.sort(descending=True)
    before = values.cumsum(0) - values
    kept = int((before < sampling.top_p).sum())  # at least the first
    return int(tokens[_drawn(values[: max(1, kept)], generator)])


def _drawn(p: Tensor, generator: torch.Generator) -> int:
    """An index with probability in proportion to ``p``."""
    edges = p.double().cumsum(0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * edges[-1]
    return min(int(torch.searchsorted(edges, point, right=True)), len(p) - 1)

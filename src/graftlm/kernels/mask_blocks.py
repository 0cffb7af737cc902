"""The blocks of an attention mask: runs of positions that attend only to each other.

Sequences laid end to end give a mask of blocks along the diagonal. The rest need not be computed: n
sequences of L / n positions need an n-th of the L × L products. The blocks are read from the mask
itself, so every pair of positions that the mask allows is computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from graftlm._compat.torch_objects import version_of

__all__ = ["Block", "blocks"]

LEAST = 32
"""Positions. Smaller blocks are computed with their neighbours, because each block costs a call."""


class Block(NamedTuple):
    """Positions [start, stop) that attend to no others; ``causal``: each only up to itself."""

    start: int
    stop: int
    causal: bool


_known: Any = WeakIdKeyDictionary()


def blocks(mask: Tensor) -> tuple[Block, ...]:
    """Cut the positions of a mask into as many blocks as possible of at least `LEAST`.

    The result is cached as long as the mask lives, because all layers of a model get the same mask.

    Args:
        mask: bool, (B, H, L, L); true if position i of row b and head h attends to j.
    """
    if mask.is_inference():  # such a tensor has no version, so a change would not be noticed
        return _blocks(mask)
    known: tuple[int, tuple[Block, ...]] | None = _known.get(mask)
    if known is None or known[0] != version_of(mask):
        known = _known[mask] = (version_of(mask), _blocks(mask))
    return known[1]


def _blocks(mask: Tensor) -> tuple[Block, ...]:
    length = mask.shape[-1]
    # This is also the result for a mask that is too large to have values in a plan.
    if bool(mask.all()):
        return (Block(0, length, length == 1),)
    place = torch.arange(length)
    seen = mask.flatten(0, 1).any(0)
    someone = seen.any(1)
    first = torch.where(someone, seen.to(torch.uint8).argmax(1), place)
    last = torch.where(someone, length - 1 - seen.flip(1).to(torch.uint8).argmax(1), place)
    # There is a border between i - 1 and i if no position attends across it, in either direction.
    before = last.cummax(0).values[:-1] < place[1:]
    after = first.flip(0).cummin(0).values.flip(0)[1:] >= place[1:]
    borders = [int(border) + 1 for border in (before & after).nonzero().flatten()]
    starts = [0]
    for border in borders:
        if min(border - starts[-1], length - border) >= LEAST:
            starts.append(border)
    stops = [*starts[1:], length]
    triangle = place <= place[:, None]
    return tuple(
        Block(
            start,
            stop,
            bool((mask[..., start:stop, start:stop] == triangle[start:stop, start:stop]).all()),
        )
        for start, stop in zip(starts, stops, strict=True)
    )

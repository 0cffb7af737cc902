"""The blocks of an attention mask: runs of positions that see each other and nobody else.

Sequences laid end to end give a mask of blocks along the diagonal. What lies outside of them need
not be computed: n sequences of L / n positions cost an n-th of the L × L products. The blocks are
read from the mask itself, so no pair of positions is left out that the mask lets through.
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
    """Positions [start, stop) that see no others; ``causal``: each sees all up to itself."""

    start: int
    stop: int
    causal: bool


_known: Any = WeakIdKeyDictionary()


def blocks(mask: Tensor) -> tuple[Block, ...]:
    """Cut the positions of a mask into as many blocks as there can be of `LEAST` or more.

    The answer is kept as long as the mask is: all layers of a model are given the same one.

    Args:
        mask: bool, (B, H, L, L); position i of row b and head h sees j where it is true.
    """
    if mask.is_inference():  # such a tensor has no version, so a change would not be noticed
        return _blocks(mask)
    known: tuple[int, tuple[Block, ...]] | None = _known.get(mask)
    if known is None or known[0] != version_of(mask):
        known = _known[mask] = (version_of(mask), _blocks(mask))
    return known[1]


def _blocks(mask: Tensor) -> tuple[Block, ...]:
    length = mask.shape[-1]
    # Also the answer for a mask too large to be followed in a plan.
    if bool(mask.all()):
        return (Block(0, length, length == 1),)
    place = torch.arange(length)
    seen = mask.flatten(0, 1).any(0)
    someone = seen.any(1)
    first = torch.where(someone, seen.to(torch.uint8).argmax(1), place)
    last = torch.where(someone, length - 1 - seen.flip(1).to(torch.uint8).argmax(1), place)
    # Between i - 1 and i lies a border if nobody before it sees past it, and nobody after, back.
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

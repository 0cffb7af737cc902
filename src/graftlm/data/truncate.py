"""Truncates rows longer than ``max_length`` and counts every loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from graftlm.config import DataConfig
from graftlm.data.example import Example

__all__ = ["truncate"]


class Counts(Protocol):
    """The counters of losses."""

    too_long: int
    truncated: int
    split: int
    unsupervised: int


def truncate(
    example: Example, config: DataConfig, counts: Counts, head: Sequence[int] = ()
) -> list[Example]:
    """The examples from a row: itself, a part, several windows, or none.

    ``left`` keeps the end of the row, with the end of the answer. ``right`` keeps its beginning, so
    the model does not learn to stop there. ``split`` makes consecutive windows without overlap. A
    part without a learned token is dropped (the first token of a window is never predicted).

    Args:
        example: the whole row.
        config: its ``max_length`` and ``truncation``.
        counts: the counters of losses.
        head: the tokens that begin every text of this tokenizer, usually its begin token. If a row
            begins with them, so does every part of it, because models expect them.
    """
    limit = config.max_length
    windows = [example]
    if len(example) > limit:
        if config.truncation == "drop":
            counts.too_long += 1
            return []
        begins = len(head) < limit and list(example.input_ids[: len(head)]) == list(head)
        first = list(head) if begins else []
        if config.truncation == "split":
            counts.split += 1
            starts = range(limit, len(example), limit - len(first))
            windows = [_cut(example, 0, limit, [])]
            windows += [_cut(example, s, s + limit - len(first), first) for s in starts]
        else:
            counts.truncated += 1
            if config.truncation == "left":
                windows = [_cut(example, len(example) - limit + len(first), len(example), first)]
            else:
                windows = [_cut(example, 0, limit, [])]
    kept = [window for window in windows if np.any(window.supervised[1:])]
    counts.unsupervised += len(windows) - len(kept)
    return kept


def _cut(example: Example, start: int, end: int, head: list[int]) -> Example:
    """A part of a row, after head tokens that are not learned."""
    ids, supervised = example.input_ids[start:end], example.supervised[start:end]
    if not head:
        return Example(ids, supervised)
    return Example(
        np.concatenate([np.array(head, np.int32), np.asarray(ids, np.int32)]),
        np.concatenate([np.zeros(len(head), np.bool_), np.asarray(supervised, np.bool_)]),
    )

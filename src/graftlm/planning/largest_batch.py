"""The largest micro-batch that a run can meet, and how many such its steps are worth.

As `graftlm.training.batching` makes them: rows laid end to end, or stacked and padded.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from graftlm.data.batch import rounded_length
from graftlm.planning.trace import BatchShape
from graftlm.training.batching import end_to_end, parts, room_of

__all__ = ["laid", "stacked"]

SAMPLED = 64
"""Batches that are laid out, of the shortest rows to the longest, to see how full the parts get."""


def laid(
    lengths: Sequence[int], batch_size: int, at_once: int, most: int | None, sequences: int
) -> BatchShape:
    """Rows end to end.

    Args:
        lengths: tokens of each row, sorted.
        batch_size: rows of a batch.
        at_once: tokens of a part, at most, a row at least.
        most: the most positions that the model can read, where it has a limit.
        sequences: in each row.
    """
    rows = _rows(lengths, batch_size)
    batches = _batches(rows, batch_size)
    filled = [
        [sum(batch[row] for row in part) for part in end_to_end(batch, at_once, most)]
        for batch in batches[:: -(-len(batches) // SAMPLED)]
    ]
    largest = max(max(tokens) for tokens in filled)
    if rows[0] != rows[-1]:  # other rows may meet in a batch, and fill a part
        room = room_of(at_once, most)
        largest = max(largest, rows[-1], min(room, sum(rows[-batch_size:])))
    length = rounded_length(largest, most)
    positions = statistics.fmean(sum(rounded_length(n, most) for n in tokens) for tokens in filled)
    together = max(1, min(batch_size, round(largest / statistics.fmean(rows))))
    return BatchShape(1, length, sequences=together * sequences, passes=positions / length)


def stacked(
    lengths: Sequence[int], batch_size: int, at_once: int | None, most: int | None, sequences: int
) -> BatchShape:
    """Rows below each other, padded to the longest; arguments as for `laid`."""
    rounded = [rounded_length(length, most) for length in lengths]

    def rows(length: int) -> int:
        fit = batch_size if at_once is None else at_once // length
        return max(1, min(batch_size, fit))

    length = max(set(rounded), key=lambda length: (rows(length) * length, length))
    positions = statistics.fmean(
        sum(batch[part[-1]] * len(part) for part in parts(batch, at_once))
        for batch in _batches(_rows(rounded, batch_size), batch_size)
    )
    return BatchShape(
        rows(length),
        length,
        padded=lengths[0] < length,
        sequences=sequences,
        passes=positions / (rows(length) * length),
    )


def _rows(lengths: Sequence[int], batch_size: int) -> list[int]:
    """The rows in order of length; repeated until they fill a batch, for few stand for many."""
    times = -(-batch_size // len(lengths)) if len(lengths) < batch_size else 1
    return sorted([*lengths] * times)


def _batches(rows: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """Batches of rows of like length."""
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]

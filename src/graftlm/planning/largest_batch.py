"""The largest possible micro-batch of a run, and how many of them equal the work of a step.

`graftlm.training.batching` lays rows end to end, or stacks and pads them; so does this file.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from graftlm.config import RunConfig
from graftlm.data.batch import rounded_length
from graftlm.planning.trace import BatchShape
from graftlm.training.batching import end_to_end, parts, room_of

__all__ = ["laid", "largest_batch", "stacked"]

SAMPLED = 64
"""How many batches, from the shortest rows to the longest, are laid out to measure the parts."""


def largest_batch(
    config: RunConfig,
    lengths: Sequence[int],
    batch_size: int,
    at_once: int | None,
    most: int | None,
    end_to_end: bool,
) -> BatchShape:
    """The largest micro-batch of a run, and how many make a step.

    Args:
        config: the run.
        lengths: tokens of each row of the data; if none is known, all are of the maximum length.
        batch_size: rows of a batch in one process.
        at_once: maximum tokens in a part; ``None``: a whole batch.
        most: the maximum length that the model can read; ``None`` if it has no limit.
        end_to_end: whether rows are laid end to end, and not stacked.
    """
    length, sequences = config.data.max_length, 1
    kept = sorted(n for n in lengths if n <= length)
    if config.data.packing:
        sequences = max(2, round(length / statistics.fmean(kept or [length])))
        kept = []
    if end_to_end and at_once is not None:
        shape = laid(kept or [length], batch_size, at_once, most, sequences)
    else:
        shape = stacked(kept or [length], batch_size, at_once, most, sequences)
    passes = shape.passes * config.train.gradient_accumulation_steps
    return dataclasses.replace(shape, passes=passes)


def laid(
    lengths: Sequence[int], batch_size: int, at_once: int, most: int | None, sequences: int
) -> BatchShape:
    """Rows end to end. ``lengths`` are sorted; each row has ``sequences`` sequences."""
    rows = _rows(lengths, batch_size)
    batches = _batches(rows, batch_size)
    filled = [
        [sum(batch[row] for row in part) for part in end_to_end(batch, at_once, most)]
        for batch in batches[:: -(-len(batches) // SAMPLED)]
    ]
    largest = max(max(tokens) for tokens in filled)
    if rows[0] != rows[-1]:  # another batch of rows may fill a part
        room = room_of(at_once, most)
        largest = max(largest, rows[-1], min(room, sum(rows[-batch_size:])))
    length = rounded_length(largest, most)
    positions = statistics.fmean(sum(rounded_length(n, most) for n in tokens) for tokens in filled)
    together = max(1, min(batch_size, round(largest / statistics.fmean(rows))))
    return BatchShape(1, length, sequences=together * sequences, passes=positions / length)


def stacked(
    lengths: Sequence[int], batch_size: int, at_once: int | None, most: int | None, sequences: int
) -> BatchShape:
    """Rows stacked and padded to the longest; arguments as for `laid`."""
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
    """The rows sorted by length, repeated until they fill a batch."""
    times = -(-batch_size // len(lengths)) if len(lengths) < batch_size else 1
    return sorted([*lengths] * times)


def _batches(rows: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """Batches of rows of similar length."""
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]

"""Which rows of a step each rank computes: a pure function of the rows' lengths.

Every row of the step belongs to exactly one rank. Rows go one by one, the longest first, to the
rank with the fewest tokens so far, so that the ranks need about the same time. The update does not
depend on the split, because the gradient is that of the sum over all rows of the step.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["batches_of_rank", "rows_of_rank"]


def rows_of_rank(lengths: Sequence[int], rank: int, world_size: int) -> list[int]:
    """The places in ``lengths`` whose rows ``rank`` computes, the longest first.

    Args:
        lengths: tokens of each row.
        rank: from 0.
        world_size: the number of ranks. With fewer rows than ranks, some get none.
    """
    loads = [(0, 0, place) for place in range(world_size)]
    found = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        tokens, rows, place = heapq.heappop(loads)
        heapq.heappush(loads, (tokens + int(lengths[row]), rows + 1, place))
        if place == rank:
            found.append(row)
    return found


def batches_of_rank(
    batches: Sequence[Sequence[int]],
    lengths: Sequence[int] | npt.NDArray[np.int32],
    rank: int,
    world_size: int,
) -> list[list[int]]:
    """The batches of one step as ``rank`` computes them: row numbers.

    Args:
        batches: the batches of the whole step, as row numbers.
        lengths: tokens of every row of the data.
        rank: from 0.
        world_size: the number of ranks. One rank computes the batches as they are.
    """
    if world_size == 1:
        return [list(batch) for batch in batches]
    rows = [row for batch in batches for row in batch]
    own = [rows[i] for i in rows_of_rank([int(lengths[row]) for row in rows], rank, world_size)]
    size = -(-max((len(batch) for batch in batches), default=1) // world_size)
    return [own[start : start + size] for start in range(0, len(own), size)]

"""The order of rows: a pure function of the lengths, the seed and the epoch.

There is no state between steps: a run that resumes at step ``s`` of an epoch uses
``batches(...)[s:]`` and gets the same rows as an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["batches"]

_POOL = 64
"""Number of batches sorted by length together: more reduce padding, fewer mix rows better."""


def batches(
    lengths: Sequence[int] | npt.NDArray[np.int32],
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    group_by_length: bool = True,
) -> list[list[int]]:
    """The batches of one epoch, as row numbers; every row occurs once.

    Rows are shuffled, cut into pools, sorted by length inside each pool and cut into batches, and
    the batches are shuffled: rows of a batch are of similar length, batches come in any order. The
    last batch may be smaller.

    Args:
        lengths: tokens in each row.
        batch_size: rows per batch.
        seed: the run's seed.
        epoch: counted from zero; each has its own order.
        group_by_length: if false, rows are only shuffled and cut into batches.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if not group_by_length:
        return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    sizes = np.asarray(lengths)
    made: list[list[int]] = []
    for start in range(0, len(order), batch_size * _POOL):
        pool = order[start : start + batch_size * _POOL]
        pool = pool[np.argsort(sizes[pool], kind="stable")]
        made += [pool[i : i + batch_size].tolist() for i in range(0, len(pool), batch_size)]
    return [made[i] for i in generator.permutation(len(made))]

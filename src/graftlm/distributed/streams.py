"""The random stream of each rank: all are derived from the run's seed."""

from __future__ import annotations

import numpy as np

__all__ = ["seed_of_rank"]


def seed_of_rank(seed: int, rank: int, step: int = 0) -> int:
    """A seed for dropout; rank 0 draws at step 0 as a run in one process does.

    Args:
        seed: the run's.
        rank: from 0.
        step: the step at which the stream begins.
    """
    if rank == 0 and step == 0:
        return seed
    drawn = np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))

"""The learning rate as a pure function of the step: nothing to save, nothing to restore.

With `S` steps in all and `w = ceil(warmup_ratio · S)` of them for warm-up, step `s = 0 … S−1` gets

    s < w:      (s + 1) / w                      rises to 1
    constant:   1
    linear:     (S − s) / (S − w)                falls to 1 / (S − w) at the last step
    cosine:     ½ (1 + cos(π (s − w) / (S − w)))

times the peak learning rate.
"""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["learning_rate_factor"]


def learning_rate_factor(
    step: int,
    total_steps: int,
    warmup_ratio: float,
    schedule: Literal["constant", "linear", "cosine"],
) -> float:
    """Factor on the peak learning rate at ``step`` (from 0); always in (0, 1]."""
    warmup = math.ceil(warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    remaining = max(total_steps - warmup, 1)
    done = step - warmup
    if schedule == "linear":
        return (remaining - done) / remaining
    return 0.5 * (1.0 + math.cos(math.pi * done / remaining))

"""What becomes of a row longer than ``max_length``: a policy, and never silently nothing."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from graftlm.config import DataConfig
from graftlm.data.example import Example

__all__ = ["truncate"]


class Counts(Protocol):
    """Where it is counted what was lost."""

    too_long: int
    truncated: int
    split: int
    unsupervised: int


def truncate(example: Example, config: DataConfig, counts: Counts) -> list[Example]:
    """The examples a row becomes: itself, a part, several windows, or none; all is counted.

    ``left`` keeps the end of the row, so also the end of the answer; ``right`` keeps its beginning,
    so the model is not taught to stop there. ``split`` makes consecutive windows without overlap.
    What holds no learned token after the cut (the first token of a window is never predicted) is
    left out.
    """
    limit = config.max_length
    windows = [example]
    if len(example) > limit:
        if config.truncation == "drop":
            counts.too_long += 1
            return []
        if config.truncation == "split":
            counts.split += 1
            starts = range(0, len(example), limit)
            windows = [_cut(example, start, start + limit) for start in starts]
        else:
            counts.truncated += 1
            left = config.truncation == "left"
            start = len(example) - limit if left else 0
            windows = [_cut(example, start, start + limit)]
    kept = [window for window in windows if np.any(window.supervised[1:])]
    counts.unsupervised += len(windows) - len(kept)
    return kept


def _cut(example: Example, start: int, end: int) -> Example:
    return Example(example.input_ids[start:end], example.supervised[start:end])

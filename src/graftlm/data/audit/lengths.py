"""Statistics of row lengths."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from graftlm.data.pack import pack

__all__ = [
    "histogram",
    "packing_efficiency",
    "padding_share",
    "percentiles",
    "recommended_max_length",
]

_PERCENTILES = (0, 25, 50, 75, 90, 95, 99, 100)
_BARS = 20


def percentiles(lengths: Counter[int]) -> dict[str, int]:
    """Percentile → tokens, from counts by length."""
    sizes = np.array(sorted(lengths), dtype=np.int64)
    if not len(sizes):
        return {}
    upto = np.cumsum([lengths[int(size)] for size in sizes])
    ranks = [min(int(upto[-1] - 1), int(p / 100 * upto[-1])) for p in _PERCENTILES]
    at = np.searchsorted(upto, ranks, side="right")
    return {f"p{p}": int(sizes[i]) for p, i in zip(_PERCENTILES, at, strict=True)}


def histogram(lengths: Counter[int]) -> list[tuple[int, int]]:
    """(upper bound, rows) in at most 20 equal steps."""
    if not lengths:
        return []
    width = max(1, -(-max(lengths) // _BARS))
    bars: Counter[int] = Counter()
    for length, rows in lengths.items():
        bars[(length - 1) // width] += rows
    return [((bar + 1) * width, bars[bar]) for bar in range(max(bars) + 1)]


def padding_share(lengths: npt.NDArray[np.int32], batch_size: int = 8) -> float:
    """Share of padded positions in batches of rows of similar length."""
    if not len(lengths):
        return 0.0
    ordered = np.sort(lengths)
    padded = sum(int(ordered[i : i + batch_size][-1]) * len(ordered[i : i + batch_size])
                 for i in range(0, len(ordered), batch_size))  # fmt: skip
    return 1 - int(ordered.sum()) / padded


def packing_efficiency(lengths: npt.NDArray[np.int32], capacity: int) -> float:
    """Share of real tokens in packed sequences of ``capacity``."""
    if not len(lengths):
        return 0.0
    return float(lengths.sum()) / (len(pack(lengths, capacity)) * capacity)


def recommended_max_length(lengths: Counter[int]) -> int:
    """The smallest multiple of 64 that holds 99.5 % of the rows, or all rows if that is close."""
    if not lengths:
        return 0
    total, seen = sum(lengths.values()), 0
    longest = max(lengths)
    enough = longest
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= 0.995 * total:
            enough = length
            break
    chosen = longest if longest <= 1.25 * enough else enough
    return -(-chosen // 64) * 64

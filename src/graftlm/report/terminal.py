"""Curves and tables for the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = ["line_chart"]

_BLOCKS = " ▁▂▃▄▅▆▇█"


def line_chart(values: Sequence[float], width: int = 60, height: int = 8) -> str:
    """``values`` as columns of block characters, with the axis' range on the left.

    Values are averaged into at most ``width`` columns; the axis starts at zero, so that heights
    compare.
    """
    if not values:
        return ""
    columns = min(width, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    top = max(means) or 1.0
    lines = []
    for row in range(height - 1, -1, -1):
        cells = (round((mean / top * height - row) * 8) for mean in means)
        label = f"{top * (row + 1) / height:8.3f} │" if row in (height - 1, 0) else " " * 9 + "│"
        lines.append(label + "".join(_BLOCKS[min(8, max(0, cell))] for cell in cells))
    return "\n".join(lines)

"""Peak memory as a bar: the components of the plan, and a line at the measured peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graftlm.config import format_size
from graftlm.planning.timeline import COMPONENTS
from graftlm.report.svg import Bar

__all__ = ["memory_bars"]

COLOURS = dict(zip(COMPONENTS, (7, 0, 6, 2, 1, 3, 4, 5, 8), strict=True))
"""The colours of the components; the framework, which cannot be reduced, is grey."""


def memory_bars(rows: Sequence[tuple[str, Mapping[str, int], float]]) -> list[Bar]:
    """A bar for each (name, planned bytes by component, measured bytes).

    Without a plan the bar shows the measured peak. All bars have the same parts, so that the legend
    is complete and in order.
    """
    used = [name for name in COMPONENTS if any(planned.get(name) for _, planned, _ in rows)]
    bars = []
    for name, planned, measured in rows:
        if not planned:
            bars.append(Bar(name, [("measured", measured, 0)], format_size(measured)))
            continue
        parts = [
            (part.replace("_", " "), float(planned.get(part, 0)), COLOURS[part]) for part in used
        ]
        note = f"{format_size(measured)} (planned {format_size(sum(planned.values()))})"
        bars.append(Bar(name, parts, note, measured))
    return bars

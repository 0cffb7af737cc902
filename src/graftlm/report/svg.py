"""Charts as inline SVG: no script, no library, colours from the page's style sheet.

The drawing is 420 units wide, so that its text stays readable when a phone shows it at 360 pixels.
A colour is a number: the classes ``c0`` to ``c8`` give it a value for light and for dark pages.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import Literal

from graftlm.report.axis import figure, tick_labels, ticks

__all__ = ["Bar", "Chart", "Series", "line_chart", "stacked_bars"]

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 40
BAR_HEIGHT, BAR_PITCH = 16, 48

Style = Literal["line", "faint", "dots", "dashed"]


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: the name in the legend; an empty one is not shown.
        points: (x, y), sorted by x; x is not negative.
        colour: 0 to 8.
        style: ``dots`` is a line with a dot at each point.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    style: Style = "line"


@dataclasses.dataclass(frozen=True)
class Bar:
    """One stacked bar.

    Attributes:
        label: the text above it, on the left.
        parts: (name, value, colour) from left to right.
        note: the text above it, on the right.
        mark: a value at which a thin line crosses the bar, if any.
    """

    label: str
    parts: Sequence[tuple[str, float, int]]
    note: str = ""
    mark: float | None = None


@dataclasses.dataclass(frozen=True)
class Chart:
    """A drawing with its title and legend, ready for the page's template."""

    title: str
    svg: str
    legend: Sequence[tuple[str, int, str]]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    y_label: str = "",
    from_zero: bool = False,
) -> Chart | None:
    """Curves on shared axes; ``None`` if there is no point to draw.

    Args:
        title: the text above the chart and for screen readers.
        series: the curves, the last one on top.
        x_label: under the axis.
        y_label: above the axis.
        from_zero: whether the vertical axis starts at zero.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return None
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points]
    x_ticks = ticks(0.0, max(xs))
    y_ticks = ticks(0.0 if from_zero else min(ys), max(ys))
    high_x = max(xs) if max(xs) > 0 else x_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = x / high_x
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    parts = [_frame(title)]
    for y, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        _, row = at(0, y)
        parts.append(f'<path class="grid" d="M{LEFT} {row:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(label, LEFT - 6, row + 4, "end"))
    parts += [
        _text(label, at(x, 0)[0], HEIGHT - BOTTOM + 17, "middle")
        for x, label in zip(x_ticks, tick_labels(x_ticks), strict=True)
        if 0 <= x <= high_x
    ]
    parts.append(_text(x_label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "middle"))
    parts += [_curve(one, [at(x, y) for x, y in one.points]) for one in drawn]
    legend = [(one.name, one.colour, one.style) for one in drawn if one.name]
    caption = f"{title} ({y_label})" if y_label else title
    return Chart(caption, "".join([*parts, "</svg>"]), legend)


def stacked_bars(title: str, bars: Sequence[Bar]) -> Chart | None:
    """Horizontal bars on one scale from zero; ``None`` when there is none."""
    if not bars:
        return None
    longest = max(max(sum(value for _, value, _ in bar.parts), bar.mark or 0.0) for bar in bars)
    scale = (WIDTH - 4) / (longest or 1.0)
    height = BAR_PITCH * len(bars)
    parts, legend = [_frame(title, height)], {}
    for index, bar in enumerate(bars):
        top, left = index * BAR_PITCH + 22, 2.0
        parts.append(_text(bar.label, 2, top - 7, "start", "strong"))
        parts.append(_text(bar.note, WIDTH - 2, top - 7, "end"))
        for name, value, colour in bar.parts:
            wide = value * scale
            parts.append(
                f'<rect class="c{colour}" x="{left:.1f}" y="{top}" width="{wide:.1f}" '
                f'height="{BAR_HEIGHT}"><title>{html.escape(name)}</title></rect>'
            )
            if name:
                legend[name] = (name, colour, "bar")
            left += wide
        if bar.mark is not None:
            x = 2 + bar.mark * scale
            parts.append(f'<path class="mark" d="M{x:.1f} {top - 3}v{BAR_HEIGHT + 6}"/>')
    return Chart(title, "".join([*parts, "</svg>"]), list(legend.values()))


def _frame(title: str, height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


def _text(words: str, x: float, y: float, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text{named} {place}>{html.escape(words)}</text>"


def _curve(one: Series, places: Sequence[tuple[float, float]]) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    drawn = f'<path class="curve {one.style} c{one.colour}" d="{path}"/>'
    if one.style == "dots" or len(places) == 1:
        for (x, y), (step, value) in zip(places, one.points, strict=True):
            said = html.escape(f"{one.name} {figure(value, 4)} at {figure(step)}".strip())
            drawn += (
                f'<circle class="c{one.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                f"<title>{said}</title></circle>"
            )
    return drawn

"""The comparison as a table: a row per figure, a column per variant, the best value marked.

The terminal and the page both show these rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from graftlm.config import format_size
from graftlm.report.axis import figure
from graftlm.report.compare.figures import Figures, Spread

__all__ = ["Cell", "Row", "table"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A value as text, its spread over seeds (empty for one seed), and whether it is the best."""

    text: str
    spread: str
    best: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure of every variant."""

    name: str
    unit: str
    cells: tuple[Cell, ...]


def table(columns: Sequence[Figures]) -> list[Row]:
    """All rows that the figures have values for."""
    rows = [
        _row("peak memory", "", columns, lambda one: one.peak_memory, format_size),
        _row("time in steps", "s", columns, lambda one: one.seconds, figure),
        _row("trained parameters", "", columns, lambda one: one.trainable_parameters, _whole, None),
        _row("size of the result", "", columns, lambda one: one.artifact_bytes, format_size),
        _row("training loss", "nats", columns, lambda one: one.train_loss, _loss, None),
        _row("held-out loss before", "nats", columns, lambda one: one.eval_before, _loss, None),
        _row("held-out loss after", "nats", columns, lambda one: one.eval_loss, _loss),
        _row("gap: held-out − training", "nats", columns, lambda one: one.gap, _signed, None),
        _row("right answers", "", columns, lambda one: one.exact_match, _percent, max),
        _row("right fields", "", columns, lambda one: one.field_accuracy, _percent, max),
        _row("outside loss before", "nats", columns, lambda one: one.outside_before, _loss, None),
        _row("outside loss after", "nats", columns, lambda one: one.outside_after, _loss, None),
        _row("forgetting: its rise", "nats", columns, lambda one: one.forgetting, _signed),
    ]
    return [row for row in rows if row is not None]


def _row(
    name: str,
    unit: str,
    columns: Sequence[Figures],
    pick: Callable[[Figures], Spread | None],
    show: Callable[[float], str],
    better: Callable[..., str] | None = min,
) -> Row | None:
    """A row; ``better`` is ``min``, ``max``, or ``None`` if no value is the best."""
    values = [pick(one) for one in columns]
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return None
    shown = [show(value.mean) for value in found]
    means = {text: value.mean for text, value in zip(shown, found, strict=True)}
    # Values with the same text count as equal: a difference that is not shown gets no mark.
    best = better(means, key=means.__getitem__) if better and len(means) > 1 else None
    return Row(
        name,
        unit,
        tuple(
            Cell(text, _deviation(value, show), text == best)
            for text, value in zip(shown, found, strict=True)
        ),
    )


def _deviation(value: Spread, show: Callable[[float], str]) -> str:
    return f"± {show(value.deviation).lstrip('+')}" if value.deviation else ""


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"

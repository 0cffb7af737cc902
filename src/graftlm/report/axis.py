"""Round numbers for axes, and readable figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

__all__ = ["figure", "tick_labels", "ticks"]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that cover ``low`` to ``high``, first and last outside.

    Steps are 1, 2 or 5 times a power of ten. Equal ends are widened.
    """
    if not high > low:
        spread = abs(high) * 0.1 or 1.0
        low, high = low - spread, high + spread
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Round numbers with enough decimals to differ: ``0``, ``0.2``, ``0.4``."""
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 4:
        return [f"{value:.2g}" for value in values]
    return [f"{value:,.{decimals}f}" for value in values]


def figure(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, without an exponent if that is readable.

    ``0.01234`` → ``"0.0123"``, ``12345.6`` → ``"12,346"``, ``2e-05`` → ``"2e-05"``.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4:
        return f"{value:.{digits - 1}g}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"

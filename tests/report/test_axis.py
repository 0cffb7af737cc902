"""Numbers on axes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlm.report.axis import figure, tick_labels, ticks

FINITE = st.floats(-1e9, 1e9, allow_subnormal=False)


@given(FINITE, st.floats(1e-6, 1e9))
def test_ticks_cover_the_range_evenly(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-9 * abs(low):
        return  # rounding of the floats themselves
    found = ticks(low, high)
    slack = 1e-6 * (found[1] - found[0])
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 8
    assert len(set(tick_labels(found))) == len(found) or width < 1e-3


def test_equal_ends_are_widened() -> None:
    assert ticks(3.0, 3.0)[0] < 3.0 < ticks(3.0, 3.0)[-1]
    assert ticks(0.0, 0.0)[0] < 0.0 < ticks(0.0, 0.0)[-1]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.01234, "0.0123"), (12345.6, "12,346"), (2e-5, "2e-05"), (0.0, "0"), (1.0, "1.00")],
)
def test_figures_keep_three_digits(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_labels_have_the_decimals_of_the_step() -> None:
    assert tick_labels([0.0, 20.0, 40.0]) == ["0", "20", "40"]
    assert tick_labels([4.8, 5.0, 5.2]) == ["4.8", "5.0", "5.2"]

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.config import format_size, parse_size
from graftlm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("6GB", 6_000_000_000),
        ("512MiB", 512 << 20),
        (" 800 mb ", 800_000_000),
        ("1.5g", 1_500_000_000),
        (".5GiB", 1 << 29),
        ("2T", 2_000_000_000_000),
        ("123456789", 123_456_789),
        (4096, 4096),
    ],
)
def test_sizes_as_people_write_them(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "0", "0GB", "6 apples", "6GBB", "1e9", "6iB", "١GB x", "9" * 400]
)
def test_what_is_not_a_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size: expected one such as 6GB"):
        parse_size(text)


def test_a_few_bytes_are_taken_for_a_missing_unit() -> None:
    with pytest.raises(ConfigError, match="24 is 24 bytes; did you mean 24GB"):
        parse_size("24")


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 10**15))
def test_a_printed_size_reads_back_within_a_percent(nbytes: int) -> None:
    assert parse_size(format_size(nbytes)) == pytest.approx(nbytes, rel=0.01)

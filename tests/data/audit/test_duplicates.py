"""Near-duplicates: found where wording is shared, by exact comparison of candidates."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.data import Example
from graftlm.data.audit.duplicates import NearIndex, grams, repeats


def example(ids) -> Example:
    return Example(np.array(ids, np.int32), np.ones(len(ids), np.bool_))


def test_one_changed_token_of_a_hundred_is_near_and_half_of_them_is_not():
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 1000, 100) for _ in range(50)]
    index = NearIndex([example(row) for row in rows])
    for number, row in enumerate(rows):
        assert index.find(example(row), add_as=number) is None
    for number, row in enumerate(rows):
        changed = row.copy()
        changed[50] = 1001
        assert index.find(example(changed)) == number
        changed[:50] = 1001
        assert index.find(example(changed)) is None


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
@settings(derandomize=True, deadline=None)
def test_grams_are_the_distinct_trigrams(ids):
    expected = {tuple(ids[i : i + 3]) for i in range(len(ids) - 2)}
    assert len(grams(example(ids))) == max(1, len(expected))


def test_repeats_counts_all_but_the_first():
    later, distinct = repeats(np.array([5, 6, 5, 5, 6, 7], np.uint64))
    assert later.tolist() == [2, 3, 4]
    assert distinct == 2

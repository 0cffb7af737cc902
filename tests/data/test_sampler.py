"""The order of rows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.data.sampler import batches

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.booleans())
@settings(derandomize=True, deadline=None)
def test_every_row_occurs_once_and_the_order_is_a_pure_function(lengths, size, seed, group):
    made = batches(lengths, size, seed, 0, group_by_length=group)
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in made)
    assert made == batches(lengths, size, seed, 0, group_by_length=group)


def test_epochs_and_seeds_differ():
    lengths = list(range(1, 101))
    orders = {str(batches(lengths, 4, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_grouping_by_length_pads_less():
    lengths = [1 + (7 * i) % 101 for i in range(1000)]

    def padded(group: bool) -> int:
        made = batches(lengths, 8, 0, 0, group_by_length=group)
        return sum(max(lengths[r] for r in batch) * len(batch) for batch in made)

    assert padded(True) < 1.15 * sum(lengths) < padded(False)

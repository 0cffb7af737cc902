"""The planned micro-batch is the largest that a run makes."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.data import Example
from graftlm.models.block_attention import quick_attention
from graftlm.planning.largest_batch import laid, stacked
from graftlm.planning.trace import BatchShape
from graftlm.training.batching import micro_batches
from tests.oracles.model_families import tiny_model


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def by_blocks() -> Any:
    model = tiny_model("llama")
    assert quick_attention(model)
    return model


def run(lengths: list[int], batch_size: int, at_once: int, model: Any) -> list[tuple[int, int]]:
    """Rows and positions of the micro-batches of an epoch of rows in this order."""
    rows = [Example([1] * n, [True] * n) for n in lengths]
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [
        tuple(made.input_ids.shape)
        for batch in batches
        for made in micro_batches(model, batch, at_once)
    ]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.integers(2, 40) | st.integers(2, 120), min_size=1, max_size=25),
    st.integers(1, 8),
    st.integers(8, 600),
    st.randoms(use_true_random=False),
)
def test_no_batch_is_larger(
    llama: Any, by_blocks: Any, lengths: list[int], batch_size: int, at_once: int, random: Any
) -> None:
    shuffled = random.sample(lengths, len(lengths))
    for model, most in ((by_blocks, 128), (by_blocks, None), (llama, 128)):
        with mock.patch("graftlm.training.batching.most_positions", return_value=most):
            for order in (sorted(lengths), shuffled):
                made = run(order, batch_size, at_once, model)
                if model is by_blocks:
                    shape = laid(sorted(lengths), batch_size, at_once, most, 1)
                else:
                    shape = stacked(sorted(lengths), batch_size, at_once, most, 1)
                assert max(math.prod(size) for size in made) <= shape.rows * shape.length


@pytest.mark.parametrize("lengths", [[40] * 8 + [41], [60] * 16 + [61], [10, 20, 30, 40, 50]])
def test_a_batch_that_is_not_full_is_not_taken_for_the_largest(
    by_blocks: Any, lengths: list[int]
) -> None:
    with mock.patch("graftlm.training.batching.most_positions", return_value=None):
        made = max(math.prod(size) for size in run(lengths, 8, 512, by_blocks))
    assert made <= laid(lengths, 8, 512, None, 1).length <= 512


def test_a_step_is_worth_as_many_as_its_positions(by_blocks: Any, llama: Any) -> None:
    lengths = list(range(20, 84))
    for model, shape in (
        (by_blocks, laid(lengths, 8, 256, 128, 1)),
        (llama, stacked(lengths, 8, 256, 128, 1)),
    ):
        positions = sum(math.prod(size) for size in run(lengths, 8, 256, model))
        assert shape.passes * shape.rows * shape.length == pytest.approx(positions / 8)


def test_rows_of_one_length() -> None:
    assert laid([100], 8, 512, None, 1) == BatchShape(1, 512, sequences=5, passes=(512 + 320) / 512)
    assert laid([2048], 4, 512, None, 1) == BatchShape(1, 2048, passes=4)
    assert stacked([100], 8, 512, None, 1) == BatchShape(4, 104, padded=True, passes=2)


def test_a_part_holds_no_more_rows_than_a_batch() -> None:
    assert laid([10] * 50 + [500], 2, 512, None, 1).sequences == 2
    assert laid([128], 2, 512, None, 4).sequences == 2 * 4

"""The planned micro-batch is the largest that a run makes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.data import Example
from graftlm.models.attention import quick_attention
from graftlm.plan.shapes import laid, stacked
from graftlm.plan.trace import BatchShape
from graftlm.train.batching import micro_batches
from tests.oracles.model_families import tiny_model

LLAMA, ATTENDS_BY_BLOCKS = tiny_model("llama"), tiny_model("llama")
assert quick_attention(ATTENDS_BY_BLOCKS)


def run(lengths: list[int], batch_size: int, at_once: int, model: object) -> list[tuple[int, int]]:
    """Rows and positions of the micro-batches of an epoch of rows in order of length."""
    rows = [Example([1] * n, [True] * n) for n in lengths]
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [
        tuple(made.input_ids.shape)
        for batch in batches
        for made in micro_batches(model, batch, at_once)
    ]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.lists(st.integers(2, 120), min_size=8, max_size=24), st.integers(1, 8), st.integers(1, 400)
)
def test_no_batch_is_larger(lengths: list[int], batch_size: int, at_once: int) -> None:
    lengths.sort()
    for model, shape in (
        (ATTENDS_BY_BLOCKS, laid(lengths, batch_size, at_once, 128, 50)),
        (LLAMA, stacked(lengths, batch_size, at_once, 128, 1)),
    ):
        made = run(lengths, batch_size, at_once, model)
        assert max(rows * length for rows, length in made) <= shape.rows * shape.length
        positions = sum(rows * length for rows, length in made) / math.ceil(
            len(lengths) / batch_size
        )
        assert shape.passes * shape.rows * shape.length == pytest.approx(positions)


def test_rows_of_one_length() -> None:
    assert laid([100], 8, 512, None, 100) == BatchShape(
        1, 512, sequences=5, passes=(512 + 320) / 512
    )
    assert laid([2048], 4, 512, None, 2048) == BatchShape(1, 2048, passes=4)
    assert stacked([100], 8, 512, None, 1) == BatchShape(4, 104, padded=True, passes=2)

"""Batches: padding by position, labels that are not shifted."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.data import IGNORED, Example, collate
from graftlm.data.batch import rounded_down, rounded_length

ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=12),
    min_size=1,
    max_size=5,
)


def example(row: list[tuple[int, bool]]) -> Example:
    return Example([i for i, _ in row], [s for _, s in row])


@given(ROWS, st.integers(0, 50))
@settings(derandomize=True, deadline=None)
def test_every_real_token_is_kept_and_nothing_else_is_attended_to(rows, pad_id):
    batch = collate([example(row) for row in rows], pad_id)
    mask = batch.attention_mask
    if mask is None:
        mask = torch.ones_like(batch.input_ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        assert mask[i].tolist() == [t < len(row) for t in range(mask.shape[1])]
        assert batch.input_ids[i][mask[i]].tolist() == [token for token, _ in row]
        assert batch.labels[i][mask[i]].tolist() == [t if s else IGNORED for t, s in row]
        assert (batch.labels[i][~mask[i]] == IGNORED).all()
    assert batch.tokens == sum(map(len, rows))
    assert batch.supervised_tokens == sum(s for row in rows for _, s in row[1:])


def test_a_pad_id_that_is_the_end_token_stays_learned_where_it_is_real():
    batch = collate([Example([5, 2], [False, True]), Example([5, 6, 2], [False, True, True])], 2)
    assert batch.labels.tolist() == [[IGNORED, 2, IGNORED], [IGNORED, 6, 2]]
    assert batch.attention_mask.tolist() == [[True, True, False], [True, True, True]]


def test_rows_of_one_length_need_no_mask():
    rows = [Example(np.array([1, 2], np.int32), np.array([False, True]))] * 2
    batch = collate(rows, None)
    assert batch.attention_mask is None
    assert batch.position_ids is None
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64


def test_packed_positions_restart_and_no_sequence_predicts_the_next():
    packed = Example([1, 2, 3, 4, 5], [True] * 5, lengths=(2, 3))
    short = Example([6, 7], [True, True], lengths=(2,))
    batch = collate([packed, short], 0)
    assert batch.attention_mask is None
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]
    assert batch.labels.tolist() == [[IGNORED, 2, IGNORED, 4, 5], [IGNORED, 7] + [IGNORED] * 3]
    assert batch.supervised_tokens == 4
    assert batch.tokens == 7


def test_a_lone_packed_sequence_needs_neither_mask_nor_positions():
    batch = collate([Example([1, 2, 3], [True] * 3, lengths=(3,))], 0, length=8)
    assert batch.attention_mask is batch.position_ids is None
    assert batch.input_ids.shape == (1, 8)
    assert batch.tokens == 3
    assert batch.supervised_tokens == 2


@given(st.integers(1, 5000))
def test_lengths_are_rounded_to_a_few_with_little_padding(length):
    rounded = rounded_length(length)
    assert length <= rounded < max(length + 8, length * 1.125)
    assert rounded % 8 == 0


@given(st.integers(8, 5000))
def test_rounding_down_gives_the_longest_of_those_lengths_that_fits(length):
    down = rounded_down(length)
    assert down <= length < rounded_length(down + 1)
    assert rounded_length(down) == down


def test_few_lengths_remain_and_a_models_limit_holds():
    assert len({rounded_length(length) for length in range(1, 4097)}) == 8 * 7
    assert rounded_length(99, most=100) == 100
    assert rounded_length(90, most=100) == 96
    assert rounded_length(120, most=100) == 120  # the model's own error says what is wrong


def test_a_longer_batch_is_the_same_rows_with_more_padding():
    rows = [Example([5, 6, 7], [False, True, True]), Example([8, 9], [False, True])]
    short, long = collate(rows, 0), collate(rows, 0, length=8)
    assert long.input_ids.shape == (2, 8)
    assert torch.equal(long.input_ids[:, :3], short.input_ids)
    assert torch.equal(long.attention_mask.sum(1), torch.tensor([3, 2]))
    assert long.supervised_tokens == short.supervised_tokens
    assert long.tokens == short.tokens == 5

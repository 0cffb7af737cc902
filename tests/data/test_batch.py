"""Batches: padding by position, labels that are not shifted."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.data import IGNORED, Example, collate

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

"""How a batch is cut into the parts that are computed at once."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

from graftlm.data import Example, collate
from graftlm.data.batch import rounded_length
from graftlm.models.block_attention import attends_by_blocks, quick_attention
from graftlm.training.batching import end_to_end, micro_batches, parts
from graftlm.training.next_token import next_token_loss
from tests.oracles.model_families import tiny_model


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=40), st.none() | st.integers(1, 2000))
def test_every_row_is_in_one_part_that_is_as_full_as_it_can_be(
    lengths: list[int], positions: int | None
) -> None:
    found = parts(lengths, positions)
    assert sorted(row for part in found for row in part) == list(range(len(lengths)))
    for part in found:
        longest = max(lengths[row] for row in part)
        assert longest == lengths[part[-1]]
        assert positions is None or len(part) == 1 or longest * len(part) <= positions
    for part, following in itertools.pairwise(found):
        assert positions is not None
        assert lengths[following[0]] * (len(part) + 1) > positions


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=40), st.integers(1, 700))
def test_rows_end_to_end_fill_a_part_no_further_than_asked(lengths: list[int], tokens: int) -> None:
    for most in (None, 300):
        found = end_to_end(lengths, tokens, most)
        assert sorted(row for part in found for row in part) == list(range(len(lengths)))
        room = tokens if most is None else min(tokens, most)
        for part in (part for part in found if len(part) > 1):
            assert rounded_length(sum(lengths[row] for row in part), most) <= room


@pytest.mark.parametrize("stacked", [False, True])
def test_the_parts_of_a_batch_have_its_gradient(stacked: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    assert stacked or quick_attention(model)
    sizes = (30, 3, 17, 80, 9, 64)
    rows = [
        Example([(7 * n + i) % 100 for i in range(n)], [i > 1 for i in range(n)]) for n in sizes
    ]

    def gradient(tokens: int) -> tuple[int, torch.Tensor]:
        model.zero_grad()
        batches = micro_batches(model, rows, tokens)
        assert sum(batch.tokens for batch in batches) == sum(sizes)
        for batch in batches:
            assert stacked or batch.input_ids.shape[0] == 1
            next_token_loss(model, batch)[0].backward()
        return len(batches), torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, expected = gradient(1000)
    cut, found = gradient(100)
    assert (whole, cut) == ((1, 4) if stacked else (1, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_mixes_sequences_is_given_padded_rows() -> None:
    model = tiny_model("opt")
    model.config.attention_dropout = 0.0
    assert quick_attention(model)
    rows = [Example([5 + i % 50 for i in range(n)], [True] * n) for n in (20, 9, 14)]
    (batch,) = micro_batches(model, rows)
    assert batch.input_ids.shape == (3, 24)
    assert batch.attention_mask is not None
    model.eval()
    with torch.no_grad():
        together = float(next_token_loss(model, batch)[0])
        alone = sum(float(next_token_loss(model, collate([row], 0))[0]) for row in rows)
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("change", [{"attention_dropout": 0.1}, {"v_head_dim": 8}])
def test_rows_are_padded_where_attention_does_not_go_by_blocks(change: dict[str, object]) -> None:
    model = tiny_model("llama")
    assert quick_attention(model)
    assert attends_by_blocks(model)
    model.config.update(change)
    assert not attends_by_blocks(model)

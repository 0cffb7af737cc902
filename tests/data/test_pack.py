"""Packing: nothing is lost, little is padded, and no example sees another."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, MambaConfig

from graftlm.data import Example, collate, pack_examples
from graftlm.data.pack import pack
from graftlm.errors import ConfigError
from graftlm.models.capabilities import capabilities, require_packable
from graftlm.training.next_token import next_token_loss
from tests.oracles.model_families import FAMILIES, tiny_model

NOT_PACKABLE = {"opt", "falcon"}
"""They do not hand their positions to the attention mask (transformers 5.23)."""

LENGTHS = st.lists(st.integers(1, 64), min_size=0, max_size=200)


@given(LENGTHS, st.integers(64, 200))
@settings(derandomize=True, deadline=None)
def test_every_example_is_in_one_bin_that_holds_it(lengths, capacity):
    bins = pack(lengths, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= capacity for b in bins)


@given(LENGTHS, st.integers(64, 130))
@settings(derandomize=True, deadline=None)
def test_bins_are_those_of_best_fit_decreasing(lengths, capacity):
    rooms: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - size)
        else:
            rooms.append(capacity - size)
    made = pack(lengths, capacity)
    assert sorted(capacity - sum(lengths[i] for i in b) for b in made) == sorted(rooms)


def test_an_example_longer_than_the_capacity_is_refused():
    with pytest.raises(ValueError, match="65 tokens exceeds the capacity 64"):
        pack([3, 65], 64)


def rows() -> list[Example]:
    draw = np.random.default_rng(0)
    lengths = [3, 17, 9, 5, 24, 2, 12, 7]
    return [
        Example(draw.integers(3, 60, n).astype(np.int32), draw.random(n) < 0.7) for n in lengths
    ]


def gradients(model, batches) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss = torch.stack([next_token_loss(model, batch)[0] for batch in batches]).sum()
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NOT_PACKABLE))
def test_packed_and_unpacked_give_the_same_loss_and_gradients(family):
    model = tiny_model(family)
    require_packable(model)
    alone, expected = gradients(model, [collate([row], 0) for row in rows()])
    padded, same = gradients(model, [collate(rows(), 0)])
    packed = pack_examples(rows(), 40)
    assert len(packed) == 2
    together, found = gradients(model, [collate(list(packed), 0)])
    assert padded == pytest.approx(alone, rel=1e-6)
    assert together == pytest.approx(alone, rel=1e-6)
    for a, b, c in zip(expected, same, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(c, a, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", sorted(NOT_PACKABLE))
def test_a_model_that_mixes_packed_sequences_is_refused(family):
    model = tiny_model(family)
    assert not capabilities(model).keeps_sequences_apart
    with pytest.raises(ConfigError, match="does not keep packed sequences apart"):
        require_packable(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_is_not_taken_for_mixing(dtype: torch.dtype) -> None:
    model = tiny_model("gemma3", dtype)
    model.train()
    assert capabilities(model).keeps_sequences_apart
    assert model.training


def test_a_model_that_carries_a_state_along_does_not_keep_sequences_apart() -> None:
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)
    assert not capabilities(AutoModelForCausalLM.from_config(config)).keeps_sequences_apart


def test_a_model_that_cannot_be_asked_is_not_packed(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    model.train()
    model.lm_head.eval()
    with mock.patch.object(model.model, "forward", side_effect=ValueError("only images")):
        assert not capabilities(model).keeps_sequences_apart
    assert "only images" in caplog.text
    assert model.training
    assert not model.lm_head.training


def test_what_is_packed_can_be_packed_again() -> None:
    twice = pack_examples(pack_examples(rows(), 30), 79)
    (one,) = twice
    assert len(one) == sum(one.lengths) == 79
    assert sorted(one.lengths) == sorted(len(row) for row in rows())

"""Packed sequences between borders, without a mask: the same model, and nothing is padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graftlm.data import Example
from graftlm.data.batch import are_borders, borders_of, laid_end_to_end
from graftlm.kernels import Implementation, implement, operators, withdraw
from graftlm.models import block_attention, load_weights
from graftlm.models.block_attention import quick_attention
from graftlm.models.capabilities import capabilities
from graftlm.models.packing_support import attends_between_borders
from graftlm.training.batching import micro_batches
from graftlm.training.next_token import next_token_loss
from tests.oracles.model_families import FAMILIES, tiny_model
from tests.oracles.second_device import CARD, second_device

TAKE_BORDERS = set(FAMILIES) - {"falcon", "gemma2", "opt"}
"""The attention of two is not ours; OPT reads its mask for positions."""
LENGTHS = (40, 50, 33)


def results(model: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits of sequences end to end, and the gradient of the embedding."""
    ids = torch.arange(sum(LENGTHS))[None] % 90
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    model.zero_grad()
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    logits.float().logsumexp(-1).sum().backward()
    return logits, model.get_input_embeddings().weight.grad


@pytest.mark.parametrize("family", sorted(TAKE_BORDERS))
def test_borders_give_the_logits_and_gradients_of_the_mask(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    assert quick_attention(model)
    assert attends_between_borders(model)
    wanted = results(model, None)
    # The mask of L × L is not even made.
    monkeypatch.setattr(block_attention, "attention", None)
    found = results(model, borders_of(LENGTHS))
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-3, atol=1e-4)


def test_a_model_whose_window_does_not_reach_the_attention_is_met(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = block_attention.sequence_attention
    monkeypatch.setattr(block_attention, "sequence_attention", lambda *a: ours(*a[:-1], 0))
    for family, expected in (("llama", True), ("gemma3", False)):
        model = tiny_model(family)
        quick_attention(model)
        assert attends_between_borders(model) is expected


def test_attention_that_is_not_ours_takes_no_borders() -> None:
    for family in ("llama", "falcon"):
        assert not attends_between_borders(tiny_model(family))
        assert not capabilities(tiny_model(family)).attends_between_borders


def test_a_batch_between_borders_has_no_padding_and_restarting_positions() -> None:
    example = Example([5] * 10, [True] * 10, lengths=(3, 6, 1))
    batch = laid_end_to_end(example)
    assert batch.borders is not None
    assert batch.borders.tolist() == [[[[0, 3, 9, 10]]]]
    assert are_borders(batch.mask)
    assert batch.input_ids.numel() == batch.tokens == 10
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 5, 0]]
    assert batch.supervised_tokens == 7  # the first of each sequence has none before it
    alone = laid_end_to_end(Example([5] * 10, [True] * 10))
    assert (alone.borders, alone.mask, alone.position_ids) == (None, None, None)


@pytest.fixture
def kernel() -> Iterator[Callable[[], None]]:
    """Puts the reference in the place of a card's kernel."""
    added: list[Implementation] = []

    def put_in() -> None:
        names = ("sequence_attention", "sequence_attention_backward")
        added.extend(implement(name, "cuda", operators()[name].reference) for name in names)

    yield put_in
    for one in added:
        withdraw(one)


ROWS = [Example([5 + i % 50 for i in range(n)], [i > 1 for i in range(n)]) for n in (20, 9, 14, 3)]


def test_a_card_with_a_kernel_computes_no_padding(
    kernel: Callable[[], None], tiny_llama: Path
) -> None:
    with second_device() as device:
        model = load_weights(tiny_llama, device="cuda")
        padded = micro_batches(model, ROWS)
        assert [tuple(b.input_ids.shape) for b in padded] == [(4, 24)]
        wanted = float(next_token_loss(model, padded[0])[0].detach())
        kernel()
        model = load_weights(tiny_llama, device="cuda")
        (whole,) = micro_batches(model, ROWS)
        assert tuple(whole.input_ids.shape) == (1, 46)
        assert whole.tokens == whole.input_ids.numel()
        assert whole.input_ids.device == CARD
        next_token_loss(model, whole)  # the first call finds out how the model makes its logits
        device.waits.clear()
        loss = next_token_loss(model, whole)[0].detach()
        assert not device.waits  # no mask, so nothing to ask the card for
        assert float(loss) == pytest.approx(wanted, rel=1e-4)
        cut = micro_batches(model, ROWS, 30)
        assert sum(batch.input_ids.numel() for batch in cut) == 46
        assert len(cut) == 2
        apart = sum(float(next_token_loss(model, batch)[0].detach()) for batch in cut)
        assert apart == pytest.approx(wanted, rel=1e-4)


def test_packed_rows_of_the_data_stay_apart_there(
    kernel: Callable[[], None], tiny_llama: Path
) -> None:
    packed = [
        Example([7] * 12 + [9] * 8, [True] * 20, lengths=(12, 8)),
        Example([11] * 5, [True] * 5, lengths=(5,)),
    ]
    with second_device():
        kernel()
        (batch,) = micro_batches(load_weights(tiny_llama, device="cuda"), packed)
    assert batch.borders is not None
    assert batch.borders.tolist() == [[[[0, 12, 20, 25]]]]

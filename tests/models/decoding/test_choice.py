"""The choice of a token: against torch's own functions."""

from __future__ import annotations

import pytest
import torch

from graftlm.models.decoding.choice import BLOCK, Sampling, most_probable, sampled


@pytest.mark.parametrize("vocabulary", [7, BLOCK, 3 * BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_most_probable_is_the_first_maximum(vocabulary: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for scale in (1.0, 0.01):  # with many equal values in bfloat16
        logits = (torch.randn(40, vocabulary) * scale).round(decimals=2).to(dtype)
        found = most_probable(logits)
        highest = logits.float().amax(-1)
        first = torch.stack(
            [(row == top).nonzero()[0, 0] for row, top in zip(logits, highest, strict=True)]
        )
        assert torch.equal(found, first)


@pytest.mark.parametrize("top_p", [1.0, 0.7, 0.01])
def test_samples_follow_the_softmax_of_the_nucleus(top_p: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
    p = torch.softmax(logits / 0.8, -1)
    order = p.sort(descending=True)
    kept = order.values.cumsum(0) - order.values < top_p
    wanted = torch.zeros(5)
    wanted[order.indices[kept]] = order.values[kept]
    wanted /= wanted.sum()
    generator = torch.Generator().manual_seed(0)
    draws = [sampled(logits, Sampling(0.8, top_p), generator) for _ in range(4000)]
    seen = torch.bincount(torch.tensor(draws), minlength=5) / 4000
    assert (seen - wanted).abs().max() < 0.03
    assert (seen[wanted == 0] == 0).all()


def test_a_flat_distribution_wider_than_the_first_look_is_sorted_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graftlm.models.decoding.choice.LIKELY", 10)
    generator = torch.Generator().manual_seed(0)
    draws = {sampled(torch.zeros(100), Sampling(1.0, 0.5), generator) for _ in range(500)}
    assert 40 <= len(draws) <= 51

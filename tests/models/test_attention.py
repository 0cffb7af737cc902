"""A model with our attention is the model, whatever the processor multiplies quickly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftlm.models import attention
from graftlm.models.attention import quick_attention
from tests.oracles.model_families import FAMILIES, tiny_model


def results(model: Any, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the gradient of the embedding."""
    ids = torch.arange(2 * 24).view(2, 24) % 90
    logits = model(ids, attention_mask=mask).logits
    model.zero_grad()
    logits[mask.bool()].float().logsumexp(-1).sum().backward()
    weight = model.get_input_embeddings().weight
    return logits[mask.bool()], weight.grad


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_and_gradients(
    family: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.ones(2, 24, dtype=torch.int64)
    if padded:
        mask[1, 15:] = 0
    model = tiny_model(family, torch.float32)
    logits, gradient = results(model, mask)
    quick_attention(model)
    monkeypatch.setattr(attention, "_slow", lambda query: True)  # ours, though not narrow
    ours, ours_gradient = results(model, mask)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours_gradient, gradient, rtol=1e-3, atol=1e-4)


def test_a_saved_config_does_not_name_it(tmp_path: Any) -> None:
    model = tiny_model("llama", torch.float32)
    quick_attention(model)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    assert model.config._attn_implementation == attention.NAME

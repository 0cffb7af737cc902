"""A model that attends by blocks, or in float32, is the model it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftlm.models import block_attention as attention
from graftlm.models.block_attention import quick_attention
from tests.oracles.model_families import FAMILIES, tiny_model

LEFT_ALONE = {"falcon", "gemma2"}
"""One cannot be told, the other's attention is not PyTorch's."""
IDS = torch.arange(2 * 24).view(2, 24) % 90


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor, and for float32 too, where ours and theirs must agree closely."""
    monkeypatch.setattr(attention, "fast_bfloat16", lambda: False)
    monkeypatch.setattr(attention, "_NARROW", (torch.float32,))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each layer that attended with ours, the number of blocks."""
    found: list[int] = []
    ours = attention.attention

    def counted(*arguments: Any) -> torch.Tensor:
        found.append(len(arguments[-1]))
        return ours(*arguments)

    monkeypatch.setattr(attention, "attention", counted)
    return found


def results(model: Any, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the gradient of the embedding."""
    logits = model(IDS, attention_mask=mask).logits
    model.zero_grad()
    logits[mask.bool()].float().logsumexp(-1).sum().backward()
    return logits[mask.bool()], model.get_input_embeddings().weight.grad


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_and_gradients(family: str, padded: bool, calls: list[int]) -> None:
    mask = torch.ones(2, 24, dtype=torch.int64)
    if padded:
        mask[1, 15:] = 0
    model = tiny_model(family, torch.float32)
    logits, gradient = results(model, mask)
    assert quick_attention(model) == (family not in LEFT_ALONE)
    ours, ours_gradient = results(model, mask)
    assert len(calls) == (0 if family in LEFT_ALONE else 2)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours_gradient, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_same_answers(family: str) -> None:
    model = tiny_model(family, torch.float32)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[1, :5] = 0
    expected = model.generate(IDS, attention_mask=mask, **settings)
    assert quick_attention(model)
    assert torch.equal(model.generate(IDS, attention_mask=mask, **settings), expected)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - LEFT_ALONE - {"opt"}))
def test_sequences_end_to_end_are_computed_by_themselves(family: str, calls: list[int]) -> None:
    lengths = (40, 50, 33)
    ids = torch.arange(sum(lengths))[None] % 90
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    model = tiny_model(family, torch.float32)
    assert quick_attention(model)
    with torch.no_grad():
        together = model(ids, position_ids=positions, use_cache=False).logits
        alone = [model(part, use_cache=False).logits for part in ids.split(lengths, 1)]
    assert calls == [3, 3, *(1,) * 6]  # two layers
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-4, atol=1e-4)


def test_keys_beyond_the_queries_have_no_gradient() -> None:
    """As with a cache of fixed size: position i sees keys up to i."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 8, requires_grad=True) for n in (4, 9, 9))
    y, _ = attention._attend(torch.nn.Module(), q, k, v, None)
    expected, _ = attention._theirs(torch.nn.Module(), q, k[:, :, :4], v[:, :, :4], None)
    torch.testing.assert_close(y, expected)
    for gradient in torch.autograd.grad(y.sum(), (k, v)):
        assert not gradient[:, :, 4:].any()


def test_a_gpu_in_the_machine_changes_nothing_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    mask = torch.ones(2, 24, dtype=torch.int64)
    alone = tiny_model("llama", torch.float32)
    assert quick_attention(alone)
    logits, gradient = results(alone, mask)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    beside = tiny_model("llama", torch.float32)
    assert quick_attention(beside)
    again, gradient_again = results(beside, mask)
    assert torch.equal(again, logits)
    assert torch.equal(gradient_again, gradient)
    assert len(calls) == 4  # two layers, twice


def test_tensors_elsewhere_than_on_the_processor_are_left_to_pytorch(calls: list[int]) -> None:
    model = tiny_model("llama", torch.float32).to("meta")
    assert quick_attention(model)
    assert model(IDS.to("meta")).logits.is_meta
    assert calls == []


def test_a_model_that_asks_for_its_attention_by_name_is_left_alone() -> None:
    from transformers.models.deepseek_v32 import modeling_deepseek_v32
    from transformers.models.llama import modeling_llama

    assert attention._asks_by_name(modeling_deepseek_v32.DeepseekV32ForCausalLM)
    assert not attention._asks_by_name(modeling_llama.LlamaForCausalLM)


def test_a_saved_config_does_not_name_it(tmp_path: Any) -> None:
    model = tiny_model("llama", torch.float32)
    assert quick_attention(model)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    assert model.config._attn_implementation == attention.NAME

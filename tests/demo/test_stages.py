"""The stages of the demo on a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graftlm.demo import stages
from graftlm.demo.stages import DemoSettings, run_demo


@pytest.fixture(scope="module")
def roomy_llama(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama over bytes with room for the demo's rows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=4096, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "roomy"
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_answers_that_end_early_have_the_scores_of_whole_ones(
    roomy_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few steps the model never stops: only the rows shown are written to the limit."""
    settings = DemoSettings(
        str(roomy_llama), "lora", "cpu", eval_rows=2, scored_rows=6, steps=2, batch_size=1
    )
    written: list[list[int]] = []
    real = stages.generate_text

    def counted(*given: Any, **more: Any) -> Any:
        found = real(*given, **more)
        written.append([answer.tokens for answer in found])
        return found

    monkeypatch.setattr(stages, "generate_text", counted)
    said: list[str] = []
    quick = run_demo(settings, tmp_path / "quick", said.append, shown=2)
    monkeypatch.setattr(stages, "settled", lambda text: False)
    whole = run_demo(settings, tmp_path / "whole", said.append, shown=2)
    assert (quick.before, quick.after, quick.rows) == (whole.before, whole.after, whole.rows)
    for cut, full in zip(written[:2], written[2:], strict=True):
        assert cut[:2] == full[:2]
        assert sum(cut[2:]) * 4 < sum(full[2:])
    assert (
        sum("2 to the end, the others until their score is settled" in line for line in said) == 4
    )

"""Merges into experts whose checkpoint has their rows in another order than the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from graftlm.adapters import add_lora
from graftlm.adapters.peft_format import save_adapter
from graftlm.config import LoRAConfig
from graftlm.exporting.merge import merge_to_folder
from graftlm.models import load_model
from tests.oracles.mixtures import BOTH
from tests.oracles.peft_experts import draw, logits
from tests.oracles.tiny_architectures import tiny_model


def test_transformers_reads_the_merged_experts(
    tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    tiny_model("inkling2_text").save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    model, _ = load_model(base, quantize=None)
    before = logits(model)
    add_lora(model, LoRAConfig(rank=4, targets=(), target_parameters=BOTH))
    draw(model)
    save_adapter(model, tmp_path / "adapter", base_name=str(base))
    merge_to_folder(tmp_path / "adapter", tmp_path / "merged")
    assert "not tried" not in capsys.readouterr().err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert (logits(model) - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=2e-5)

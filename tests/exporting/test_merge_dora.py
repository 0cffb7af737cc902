"""Adapters of other kinds are measured and merged like plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import graftlm
from graftlm.adapters import lora_parameters
from graftlm.adapters.peft_format import save_adapter
from graftlm.config import LoRAConfig
from graftlm.errors import ResourceError
from graftlm.exporting.measured_merge import measured_merge
from tests.oracles.model_families import tiny_model

IDS = torch.arange(1, 25).view(2, 12)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize(("family", "rslora"), [("llama", True), ("gpt2", False)])
def test_a_merged_dora_adapter_is_what_peft_computes(
    family: str, rslora: bool, tiny_tokenizer: Any, rows_file: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    tiny_model(family).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    model, tokenizer = graftlm.load_model(base, quantize=None)
    config = LoRAConfig(rank=4, alpha=8, variant="dora", use_rslora=rslora)
    graftlm.add_lora(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in lora_parameters(model):
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            else:
                parameter.normal_(std=0.3)
    save_adapter(model, tmp_path / "adapter", base_name=str(base), tokenizer=tokenizer)
    report = measured_merge(tmp_path / "adapter", tmp_path / "merged", data=str(rows_file))
    assert report["kept"] == pytest.approx(1, abs=1e-3)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    plain = AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert (plain(IDS).logits - tiny_model(family)(IDS).logits).abs().max() > 0.1  # it acts
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_dora_adapter_merges_into_4_bits(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    model, tokenizer = graftlm.load_model(tiny_llama)
    graftlm.add_lora(model, LoRAConfig(rank=4, variant="dora"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in lora_parameters(model):
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_adapter(model, tmp_path / "adapter", base_name=str(tiny_llama), tokenizer=tokenizer)
    report = measured_merge(
        tmp_path / "adapter", tmp_path / "merged", to="nf4", data=str(rows_file), least_kept=0.0
    )
    assert report["chosen"] == "nf4-feedback"
    assert report["kept"] > 0.7
    written, _ = graftlm.load_model(tmp_path / "merged")
    with torch.no_grad():
        ours, live = written(IDS).logits, model(IDS).logits
        base, _ = graftlm.load_model(tiny_llama)
        assert (ours - live).norm() < 0.7 * (base(IDS).logits - live).norm()

    told: list[str] = []
    with pytest.raises(ResourceError, match="already exists and is not an empty folder"):
        measured_merge(tmp_path / "adapter", tmp_path / "merged", tell=told.append)
    assert not told  # it is refused before minutes of measuring

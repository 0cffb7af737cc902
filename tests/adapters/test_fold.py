"""`fold` computes what the adapters do; `unmerge` gives every bit and every object back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftlm.adapters import add_lora, lora_parameters, merge_adapters
from graftlm.adapters.fold import fold
from graftlm.config import LoRAConfig
from graftlm.models import load_model
from graftlm.models.quantize import quantize_folder
from tests.oracles.model_families import tiny_model

IDS = torch.arange(1, 25).view(2, 12)


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
def test_folding_is_the_adapter_and_unmerging_is_exact(
    family: str, quantize: str | None, tmp_path: Any, tiny_tokenizer: Any
) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    model: Any = load_model(tmp_path, quantize=quantize)[0]
    add_lora(model, LoRAConfig(rank=4))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.1)
        tensors = {id(t) for t in (*model.parameters(), *model.buffers())}
        before = model(input_ids=IDS).logits
        folded = fold(model)
        assert folded.merged
        merged = model(input_ids=IDS).logits
        torch.testing.assert_close(merged, before, rtol=0, atol=5e-5)
        folded.unmerge()
        folded.unmerge()
        assert torch.equal(model(input_ids=IDS).logits, before)
        assert {id(t) for t in (*model.parameters(), *model.buffers())} == tensors


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_4_bit_folder_that_is_opened_in_another_type(
    family: str, tmp_path: Any, tiny_tokenizer: Any
) -> None:
    """Its weights were bfloat16 before they were stored; the model computes in float32."""
    tiny_model(family).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    quantize_folder(str(tmp_path / "base"), tmp_path / "nf4")
    model: Any = load_model(tmp_path / "nf4", dtype="float32")[0]
    add_lora(model, LoRAConfig(rank=4))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.1)
        before = model(input_ids=IDS).logits
        folded = fold(model)
        torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=0, atol=5e-5)
        folded.unmerge()
        merge_adapters(model)
        torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=0, atol=5e-5)

"""PEFT renames the tensors of some models while it reads them; the file allows for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import conversion_mapping
from transformers.core_model_loading import WeightRenaming

from graftlm.adapters import add_lora
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.errors import ArtifactError
from tests.oracles.mixtures import COMMON
from tests.oracles.peft_experts import draw, logits

SETTINGS = {
    "num_experts": 4,
    "shared_expert_intermediate_size": 32,
    "mlp_layer_types": ["dense", "sparse"],
}


def tiny_laguna() -> Any:
    torch.manual_seed(0)
    config = transformers.LagunaConfig(**COMMON | SETTINGS)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def adapted_laguna() -> Any:
    model = tiny_laguna()
    add_lora(model, LoRAConfig(rank=4))
    draw(model)
    return model


def shared_in(folder: Path) -> list[str]:
    keys = load_file(folder / "adapter_model.safetensors")
    return [key for key in keys if "shared" in key]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")
def test_peft_reads_the_adapters_of_renamed_modules(tmp_path: Path) -> None:
    model = adapted_laguna()
    save_adapter(model, tmp_path)
    assert shared_in(tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_laguna(), str(tmp_path))
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=2e-5)
    again = tiny_laguna()
    load_adapter(again, tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    assert (logits(model) - logits(tiny_laguna())).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")
def test_a_file_with_the_names_of_the_model_is_read_too(tmp_path: Path) -> None:
    theirs = peft.get_peft_model(tiny_laguna(), peft.LoraConfig(target_modules="all-linear"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    assert all("shared_experts." in key for key in shared_in(tmp_path))
    model = tiny_laguna()
    load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=2e-5)


def test_a_tensor_under_both_names_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted_laguna(), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    old = shared_in(tmp_path)[0]
    new = old.replace("shared_expert.", "shared_experts.")
    save_file(tensors | {new: tensors[old].clone()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ArtifactError, match=r"mlp\.shared_expert\."):
        load_adapter(tiny_laguna(), tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_module_that_peft_cannot_find_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [WeightRenaming("self_attn.q_proj", "self_attn.none")]
    monkeypatch.setattr(
        conversion_mapping, "_checkpoint_conversion_mapping_cache", {"legacy": [], "laguna": odd}
    )
    model = adapted_laguna()
    with caplog.at_level(logging.WARNING, "graftlm"):
        save_adapter(model, tmp_path)
    assert "PEFT cannot read 4 of the adapter's" in caplog.text
    assert "q_proj.lora_A.weight first" in caplog.text
    theirs = peft.PeftModel.from_pretrained(tiny_laguna(), str(tmp_path))
    assert (logits(theirs) - logits(model)).abs().max() > 1e-2
    again = tiny_laguna()
    load_adapter(again, tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)

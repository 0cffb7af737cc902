from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from graftlm.adapters import add_lora, merge_in_place
from graftlm.config import LoRAConfig
from graftlm.errors import ModelError, ResourceError
from graftlm.models import load_model, save_model
from tests.oracles.model_families import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_model_is_the_model(family: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = tiny_model(family)
    save_model(model, tiny_tokenizer, tmp_path / "m")
    again, tokenizer = load_model(tmp_path / "m", quantize=None)
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(again.state_dict()[name], expected[name]) for name in expected)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ids = torch.arange(1, 9).view(1, 8)
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, model(ids).logits)
    assert tokenizer("phở").input_ids == tiny_tokenizer("phở").input_ids


def test_tied_weights_are_stored_once(tmp_path: Path, tiny_tokenizer: Any) -> None:
    save_model(tiny_model("llama-tied"), tiny_tokenizer, tmp_path / "m")
    names = load_file(tmp_path / "m/model.safetensors").keys()
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_saved_files_have_usual_permissions(tmp_path: Path, tiny_tokenizer: Any) -> None:
    save_model(tiny_model("llama"), tiny_tokenizer, tmp_path / "m")
    (tmp_path / "plain").write_text("")
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    for file in (tmp_path / "m").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == usual


def test_existing_folder_is_replaced_only_when_asked(tmp_path: Path, tiny_tokenizer: Any) -> None:
    save_model(tiny_model("llama"), tiny_tokenizer, tmp_path / "m")
    with pytest.raises(ResourceError, match="already exists"):
        save_model(tiny_model("qwen2"), tiny_tokenizer, tmp_path / "m")
    save_model(tiny_model("qwen2"), tiny_tokenizer, tmp_path / "m", replace=True)
    assert load_model(tmp_path / "m", quantize=None)[0].config.model_type == "qwen2"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_model_with_4bit_layers_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    model, tokenizer = load_model(tiny_llama, quantize="nf4")
    with pytest.raises(ModelError, match="FrozenLinear"):
        save_model(model, tokenizer, tmp_path / "m")


@pytest.mark.parametrize("targets", [("down_proj",), ("embed_tokens",)])
def test_model_with_adapters_is_refused(targets: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=4, targets=targets))
    with pytest.raises(ModelError, match=f"{targets[0]} is a LoRA"):
        save_model(model, tiny_tokenizer, tmp_path / "m")
    save_model(merge_in_place(model), tiny_tokenizer, tmp_path / "m")


def test_full_disk_is_found_before_anything_is_written(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="Saving the model needs"):
        save_model(tiny_model("llama"), tiny_tokenizer, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_an_error_that_names_it(tmp_path: Path, tiny_tokenizer: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        save_model(tiny_model("llama"), tiny_tokenizer, tmp_path / "file/m")

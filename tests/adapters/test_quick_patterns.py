"""An expression that would never end is refused, from settings and from files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from graftlm.adapters import add_lora, quick_patterns
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.adapters.quick_patterns import endless
from graftlm.config import LoRAConfig
from graftlm.errors import ArtifactError, ModelError, TargetError
from graftlm.models import load_model
from tests.oracles.model_families import tiny_model

ENDLESS = r"((([a-z_.0-9]+)+)+)+!"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_patterns, "SECONDS", 1.0)


def test_only_what_does_not_end_is_named() -> None:
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(20)]
    assert endless([r".*q_proj", r".*(q|v)_proj.*", r"x"], names) is None
    assert endless([r".*q_proj", ENDLESS], names) == ENDLESS


def test_endless_settings_are_refused() -> None:
    model = tiny_model("llama")
    for wrong in ({"targets": ENDLESS}, {"rank_pattern": {ENDLESS: 4}}):
        with pytest.raises(TargetError, match="takes for ever to match"):
            add_lora(model, LoRAConfig(rank=2, **wrong))  # type: ignore[arg-type]


def test_an_endless_expression_in_a_file_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=2))
    save_adapter(model, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rank_pattern": {ENDLESS: 4}}))
    with pytest.raises(ArtifactError, match="takes for ever to match"):
        load_adapter(tiny_model("llama"), tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pipe_in_a_model_folder_is_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match=f"{name} is no plain file"):
        load_model(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_pipe_in_an_adapter_folder_is_refused_at_once(name: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=2))
    save_adapter(model, tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ArtifactError, match=f"{name} is no plain file"):
        load_adapter(tiny_model("llama"), tmp_path)

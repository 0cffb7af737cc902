from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import torch
from safetensors.torch import save_file

from graftlm.adapters import adapter
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.adapters.peft_config import HARMLESS, JUDGED, AdapterConfig, read_config
from graftlm.errors import ArtifactError

PLAIN = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 4, "lora_alpha": 8}


def read(folder: Path, config: Any) -> AdapterConfig:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return read_config(folder)


def test_nulls_are_defaults(tmp_path: Path) -> None:
    config = PLAIN | {"exclude_modules": None, "layers_pattern": None, "rank_pattern": None}
    assert read(tmp_path, config) == read(tmp_path, PLAIN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_bdlora": True}, "use_bdlora=True is not supported"),
        ({"bias": "boft_only"}, "bias='boft_only'"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base model"),
        ({"a_key_of_the_future": {"x": 1}}, "a_key_of_the_future"),
        ({"r": 0}, "r=0: Input should be greater than or equal to 1"),
        ({"r": "4"}, "r='4'"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern"),
        ({"target_modules": 3}, "target_modules=3"),
        ({"target_modules": "(q"}, r"'\(q' is not a valid regular expression"),
        ({"alpha_pattern": {"[": 1}}, r"'\[' is not a valid regular expression"),
    ],
    ids=str,
)
def test_what_is_not_plain_lora_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message):
        read(tmp_path, PLAIN | change)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"(?s)use_bdlora.*use_qalora.*r=0"):
        read(tmp_path, PLAIN | {"use_bdlora": True, "use_qalora": True, "r": 0})


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_file_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"adapter_config\.json"):
        read_config(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        read_config(tmp_path)


def test_every_default_of_peft_passes_and_every_other_setting_is_judged(tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    config.save_pretrained(str(tmp_path))
    read_config(tmp_path)
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert HARMLESS | JUDGED | AdapterConfig.model_fields.keys() <= known | {"auto_mapping"}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test end with it."""
    known = {variant: list(classes) for variant, classes in adapter._registered.items()}
    monkeypatch.setattr(adapter, "_registered", known)


def test_a_variant_that_files_cannot_tell_from_another_is_refused(registered: None) -> None:
    class Same(LoRALinear):
        variant = "a_same"

    with pytest.raises(ValueError, match=r"files of Same would look like those of LoRALinear"):
        adapter.register_adapter(Same)
    assert "a_same" not in adapter.variants()


@pytest.mark.parametrize("with_gain", [False, True])
def test_of_variants_with_the_same_entries_the_tensors_decide(
    registered: None, with_gain: bool, tmp_path: Path
) -> None:
    @adapter.register_adapter
    class Gain(LoRALinear):
        variant = "a_gain"  # before `lora` in the alphabet
        peft_keys: ClassVar = {**LoRALinear.peft_keys, "gain": "lora_gain"}

    names = ["lora_A.weight", "lora_B.weight"] + ["lora_gain"] * with_gain
    tensors = {f"base_model.model.q_proj.{name}": torch.ones(1) for name in names}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert read(tmp_path, PLAIN).variant == ("a_gain" if with_gain else "lora")

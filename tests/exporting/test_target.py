"""The export targets of the package: what they write is what the adapter does, or they say so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from graftlm.adapters import add_lora, lora_parameters
from graftlm.adapters.peft_format import save_adapter
from graftlm.cli import main
from graftlm.config import LoRAConfig
from graftlm.errors import ArtifactError
from graftlm.exporting import export
from graftlm.exporting.target import ExportError
from graftlm.models import load_model
from tests.oracles.model_families import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
IDS = torch.arange(1, 25).view(2, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    model, tokenizer = load_model(base, quantize=None)
    add_lora(model, LoRAConfig(rank=4, alpha=8))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.1)
    save_adapter(model, tmp_path / "adapter", base_name=str(base), tokenizer=tokenizer)
    return tmp_path / "adapter"


def test_a_transformers_folder_is_verified_against_the_live_adapter(
    adapter: Path, tmp_path: Path
) -> None:
    report = export(adapter, "transformers", tmp_path / "out", verify=True)
    assert report["update_kept"] == pytest.approx(1, abs=1e-5)
    assert report["weights_changed"] == pytest.approx(1, abs=1e-2)
    assert report["verified"]["distance"] < 1e-4
    assert report["verified"]["update"] > 1e-2


@pytest.mark.parametrize("fault", ["base", "other"])
def test_a_folder_that_is_not_the_adapter_fails_the_proof(
    fault: str, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftlm.exporting.transformers_folder import TransformersFolder

    def write(self: Any, adapter: Path, name: str, out: Path) -> dict[str, Any]:
        shutil.copytree(base, out)
        if fault == "other":
            file = out / "model.safetensors"
            shuffled = {key: tensor.flip(0) for key, tensor in load_file(file).items()}
            save_file(shuffled, file, {"format": "pt"})
        return {}

    monkeypatch.setattr(TransformersFolder, "write", write)
    words = {"base": "it is the base model", "other": "of the adapter's own effect away"}
    with pytest.raises(ExportError, match=words[fault]) as caught:
        export(adapter, "transformers", tmp_path / "out", verify=True)
    assert caught.value.exit_code == 1


def test_a_peft_folder_is_copied_whole_and_opens_in_peft(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    report = export(adapter, "peft", tmp_path / "out", verify=True)
    assert report["verified"]["distance"] == 0
    names = {file.name for file in adapter.iterdir()} | {"README.md"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names == set(report["files"])
    model, _ = load_model(base, quantize=None)
    from graftlm.adapters.peft_format import load_adapter

    load_adapter(model, adapter)
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["peft", "transformers"])
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_written(
    target: str, adapter: Path, tmp_path: Path
) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file)
    with pytest.raises(ArtifactError, match=f"cannot be exported to {target}:\n.*does not fit"):
        export(adapter, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["peft", "transformers"])
def test_the_command_prints_one_json_object(
    target: str,
    base: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = ["graftlm", "export", str(adapter), "--to", target, "--out", str(out), "--json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    report = json.loads(capsys.readouterr().out)
    assert (report["to"], report["base"], report["out"]) == (target, str(base), str(out))
    assert report["verified"] is None

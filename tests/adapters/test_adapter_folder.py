from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from graftlm.adapters import add_lora
from graftlm.adapters.adapter_folder import adapter_folder, base_of, trained_on
from graftlm.adapters.peft_format import save_adapter
from graftlm.config import LoRAConfig, RunConfig
from graftlm.errors import ArtifactError
from tests.oracles.model_families import tiny_model


def adapter(folder: Path) -> Path:
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=2))
    save_adapter(model, folder, base_name="some/base")
    return folder


def run(folder: Path, method: str) -> Path:
    adapter(folder / "adapter")
    settings = RunConfig(method=method, model={"name": "run/base"})
    (folder / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (folder / "provenance.json").write_text("{}")
    return folder


def test_a_folder_a_run_and_the_adapter_in_a_run_are_all_found(tmp_path: Path) -> None:
    alone, of_run = adapter(tmp_path / "a"), run(tmp_path / "run", "qlora")
    assert adapter_folder(alone) == alone
    assert adapter_folder(of_run) == adapter_folder(of_run / "adapter") == of_run / "adapter"


@pytest.mark.parametrize(("method", "expected"), [("qlora", "nf4"), ("lora", "original")])
def test_a_run_tells_what_it_trained_on_and_its_base(
    method: str, expected: str, tmp_path: Path
) -> None:
    folder = run(tmp_path / "run", method)
    for path in (folder, folder / "adapter", adapter(folder / "checkpoints" / "step-3")):
        assert trained_on(path) == expected
        assert base_of(path) == "run/base"


def test_an_adapter_alone_tells_its_base_only(tmp_path: Path) -> None:
    # A settings file that happens to lie beside the adapter is not a run.
    (tmp_path / "config.yaml").write_text("method: qlora")
    folder = adapter(tmp_path / "adapter")
    assert trained_on(folder) is None
    assert base_of(folder) == "some/base"


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no adapter folder"):
        adapter_folder(tmp_path / "missing")
    with pytest.raises(ArtifactError, match=r"it has no adapter_config\.json"):
        adapter_folder(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ArtifactError, match="has not finished"):
        adapter_folder(tmp_path)

"""Model cards: in every folder that is written, with what the run recorded and nothing private."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

import graftlm
import graftlm.exporting.target as target
from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.errors import ConfigError
from graftlm.exporting.measured_merge import measured_merge
from graftlm.exporting.merge import merge_to_folder
from graftlm.exporting.model_card import CARD, card
from graftlm.exporting.push import UploadError, push
from graftlm.models import builtin
from tests.exporting.test_gguf import saved_base


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    root = tmp_path_factory.mktemp("card")
    base = saved_base(root / "base", "llama")
    config = RunConfig(
        method="lora",
        out=str(root / "run"),
        model=ModelConfig(name=str(base)),
        data=DataConfig(train=str(rows_file), eval=str(rows_file)),
        lora=LoRAConfig(rank=3),
        train=TrainConfig(steps=2, batch_size=2),
    )
    graftlm.run(config, progress=False)
    return root / "run"


def front(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(matter)
    return found


def test_a_run_leaves_a_card_with_its_record(run: Path) -> None:
    text = (run / "adapter" / CARD).read_text()
    assert front(text)["library_name"] == "peft"
    assert "- lora.rank: 3\n" in text
    assert "- held-out loss before: " in text
    assert "- data rows.jsonl, sha256: " in text
    assert "- base weights, sha256: " in text
    assert str(run.parent) not in text


def test_every_folder_has_a_card(run: Path, tmp_path: Path) -> None:
    # Not `ollama`, for which the tokenizer has no template, nor single files.
    for to in ("mlx", "peft", "transformers", "vllm"):
        target.export(run, to, tmp_path / to)
        assert "## Origin" in (tmp_path / to / CARD).read_text(), to
    merge_to_folder(run, tmp_path / "plain")
    measured_merge(run, tmp_path / "measured", force=True)
    for name in ("plain", "measured"):
        text = (tmp_path / name / CARD).read_text()
        assert front(text)["library_name"] == "transformers"
        assert "survives rounding" in text or "share of the tune kept" in text


def test_a_card_that_is_there_stays(run: Path, tmp_path: Path) -> None:
    first = target.export(run, "peft", tmp_path / "one")
    (tmp_path / "one" / CARD).write_text("mine")
    target.export(tmp_path / "one", "peft", tmp_path / "two", base=first["base"])
    assert (tmp_path / "two" / CARD).read_text() == "mine"


def test_the_licence_of_a_built_in_is_quoted_and_a_repository_is_named() -> None:
    name, entry = next(iter(builtin.MODELS.items()))
    for base in (name, f"/somewhere/{entry.sha256}"):
        text = card(None, base, "adapter")
        assert entry.notice in text
        assert f"# Fine-tuned from {name}\n" in text
    assert front(card(None, "owner/model", "adapter"))["base_model"] == "owner/model"
    assert "base_model" not in front(card(None, "/a/b", "adapter"))


class FakeHub:
    """What `huggingface_hub.HfApi` is asked; the real Hub is never called."""

    calls: list[tuple[str, dict[str, Any]]]
    fails = False

    def __init__(self) -> None:
        type(self).calls = []

    def create_repo(self, repo: str, **given: Any) -> str:
        if self.fails:
            raise OSError("no route to host")
        self.calls.append(("create", {"repo": repo, **given}))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, **given: Any) -> None:
        self.calls.append(("folder", given))

    def upload_file(self, **given: Any) -> None:
        self.calls.append(("file", given))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    class Hub(FakeHub):
        pass

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    return Hub


def test_a_folder_is_uploaded_to_a_private_repository(
    run: Path, tmp_path: Path, hub: type[FakeHub]
) -> None:
    report = target.export(run, "peft", tmp_path / "out", push_to="me/mine")
    assert report["uploaded"] == "https://huggingface.co/me/mine"
    (made, created), (kind, given) = hub.calls
    assert (made, created["private"], created["exist_ok"]) == ("create", True, True)
    assert (kind, given["folder_path"], given["repo_id"]) == ("folder", tmp_path / "out", "me/mine")


def test_a_file_is_uploaded_with_its_card(run: Path, tmp_path: Path, hub: type[FakeHub]) -> None:
    target.export(run, "gguf-adapter", tmp_path / "out.gguf", push_to="me/mine")
    names = [given["path_in_repo"] for kind, given in hub.calls if kind == "file"]
    assert names == ["out.gguf", CARD]
    assert b"library_name: gguf" in hub.calls[-1][1]["path_or_fileobj"]


def test_an_upload_without_a_token_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="set HF_TOKEN"):
        target.export(run, "peft", tmp_path / "out", push_to="me/mine")
    with pytest.raises(ConfigError, match="expected OWNER/NAME"):
        target.export(run, "peft", tmp_path / "out", push_to="no-owner")
    assert not (tmp_path / "out").exists()


def test_a_refused_upload_leaves_the_files(tmp_path: Path, hub: type[FakeHub]) -> None:
    hub.fails = True
    with pytest.raises(UploadError, match="It stays on the disk") as caught:
        push(tmp_path, "me/mine")
    assert caught.value.exit_code == 1

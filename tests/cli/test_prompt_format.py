"""`generate`, `chat`, `eval` and merged folders ask a model in the form it was trained in."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graftlm.cli import main
from graftlm.config import RunConfig, validate
from graftlm.data import render_prompt
from graftlm.exporting.merge import merge_to_folder
from graftlm.models.load import tokenizer_in
from graftlm.training import run

PROMPT = "say abc"


@pytest.fixture(scope="module", params=["plain", "chat"])
def trained(
    request: Any, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, rows_file: Path
) -> tuple[str, Path, str]:
    """The format, the run, and the text with which its rows ask."""
    folder = tmp_path_factory.mktemp(request.param)
    tree = {
        "method": "lora",
        "out": str(folder / "run"),
        "model": {"name": str(tiny_llama)},
        "data": {
            "train": str(rows_file),
            "format": request.param,
            "separator": " =>",
            "chat_template": "vicuna",
        },
        "train": {"steps": 1, "batch_size": 2},
    }
    run(validate(RunConfig, tree), progress=False)
    text = "<s>say abc =>" if request.param == "plain" else "<s>USER: say abc\nASSISTANT: "
    return request.param, folder / "run", text


def asked(monkeypatch: Any, capsys: Any, *words: str) -> tuple[list[str], str]:
    """What the model was given, and what was printed."""
    seen: list[str] = []

    def written(writer: Any, ask: Any) -> Any:
        seen.append(writer.tokenizer.decode(ask.ids))
        yield SimpleNamespace(piece="yes", text="yes", tokens=1, new=[1], reason="stop")

    monkeypatch.setattr("graftlm.cli._answers.written", written)
    monkeypatch.setattr(sys, "argv", ["graftlm", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    return seen, capsys.readouterr().out


def test_generate_and_chat_ask_in_the_trained_form(
    trained: Any, tiny_llama: Path, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    form, folder, text = trained
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    merge_to_folder(folder, tmp_path / "merged")
    models = [
        [str(tiny_llama), "--adapter", str(folder)],
        [str(tiny_llama), "--adapter", str(tmp_path / "adapter")],  # far from its run
        [str(tmp_path / "merged")],
    ]
    for named in models:
        seen, out = asked(monkeypatch, capsys, "generate", *named, "--prompt", PROMPT, "--json")
        assert seen == [text]
        assert json.loads(out)["format"] == form
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n{PROMPT}\n\n"))
        seen, _ = asked(monkeypatch, capsys, "chat", *named)
        assert seen[0] == text
        assert (seen[1] == text) == (form == "plain")  # turns follow each other in a chat only


def test_eval_reads_rows_in_the_trained_form(
    trained: Any, tiny_llama: Path, rows_file: Path, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    form, folder, _ = trained
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    losses = []
    for adapter in (folder, tmp_path / "adapter"):
        words = [str(tiny_llama), "--adapter", str(adapter), "--data", str(rows_file), "--json"]
        result = json.loads(asked(monkeypatch, capsys, "eval", *words)[1])
        assert result["data"]["format"] == form
        losses.append(result["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_run_records_how_the_model_is_asked(trained: Any, tiny_llama: Path) -> None:
    form, folder, text = trained
    recorded = json.loads((folder / "provenance.json").read_text())["rows"]
    assert recorded["asked"]["kind"] == form
    assert recorded["formats"] == {"completion": 40}
    tokenizer = tokenizer_in(folder / "adapter")
    ids = render_prompt([{"role": "user", "content": PROMPT}], tokenizer)
    assert tokenizer.decode(ids) == text


def test_check_says_how_the_model_will_be_asked(
    trained: Any, tiny_llama: Path, rows_file: Path, monkeypatch: Any, capsys: Any
) -> None:
    form = trained[0]
    words = ["check", str(rows_file), "--model", str(tiny_llama), "--set", f"data.format={form}"]
    out = asked(monkeypatch, capsys, *words, "--set", "data.chat_template=vicuna", "--json")[1]
    result = json.loads(out)
    kinds = [finding["kind"] for finding in result["findings"]]
    if form == "plain":
        assert result["asked_text"] == "QUESTION\n"
        assert "plain_questions" in kinds
    else:
        assert result["asked_text"] == "<s>USER: QUESTION\nASSISTANT: "
        assert "plain_questions" not in kinds

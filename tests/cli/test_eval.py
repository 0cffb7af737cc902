"""`graftlm eval`: rows are read as the run read its own, unless asked otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from graftlm.cli import main
from graftlm.config import RunConfig, validate
from graftlm.training import run

SETTINGS = {"chat_template": "vicuna", "max_length": 64, "loss_on": "last", "columns": {}}


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path
) -> tuple[dict[str, Any], list[str]]:
    """A run on chats of four messages, some too long, and how to name its result."""
    folder = tmp_path_factory.mktemp(request.param)
    rows = [
        {"messages": [{"role": role, "content": text * n} for role in ("user", "assistant") * 2]}
        for text, n in (("a", 1), ("b", 2), ("c", 9))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "method": request.param,
        "out": str(folder / "run"),
        "model": {"name": str(tiny_llama)},
        "data": SETTINGS
        | {"train": str(folder / "rows.jsonl"), "eval": str(folder / "rows.jsonl")},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 1e-2},
    }
    run(validate(RunConfig, tree), progress=False)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    named = [str(folder / "run" / "model")]
    if request.param == "lora":
        named = [str(tiny_llama), "--adapter", str(folder / "run")]
    return summary, [*named, "--data", str(folder / "rows.jsonl")]


def measure(monkeypatch: Any, capsys: Any, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["graftlm", "eval", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def test_the_loss_is_the_one_the_run_measured(trained: Any, monkeypatch: Any, capsys: Any) -> None:
    summary, words = trained
    code, out, err = measure(monkeypatch, capsys, *words, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["loss"] == pytest.approx(summary["eval_loss_after"], rel=1e-5)
    assert result["rows"] == 2
    assert "1 dropped, longer than max_length=64" in err
    assert SETTINGS.items() <= result["data"].items()


def test_settings_asked_for_come_before_the_runs(
    trained: Any, monkeypatch: Any, capsys: Any
) -> None:
    _, words = trained
    more = ("--max-length", "200", "--set", "data.loss_on=completion", "--json")
    _, out, _ = measure(monkeypatch, capsys, *words, *more)
    result = json.loads(out)
    assert result["rows"] == 3
    assert (result["data"]["loss_on"], result["data"]["chat_template"]) == ("completion", "vicuna")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.steps=3", "eval does not use train.steps"),
        ("data.packing=true", "eval does not use data.packing"),
        ("data.loss_onn=all", "did you mean 'data.loss_on'"),
        ("data.loss_on=none", "data.loss_on"),
    ],
)
def test_settings_without_a_meaning_here_are_refused(
    setting: str, said: str, trained: Any, monkeypatch: Any, capsys: Any
) -> None:
    code, _, err = measure(monkeypatch, capsys, *trained[1], "--set", setting)
    assert code == 2
    assert said in err


def test_a_model_without_a_run_is_read_by_the_defaults(
    tiny_llama: Path, rows_file: Path, monkeypatch: Any, capsys: Any
) -> None:
    words = (str(tiny_llama), "--data", str(rows_file), "--json")
    code, out, _ = measure(monkeypatch, capsys, *words)
    assert code == 0
    assert json.loads(out)["data"]["max_length"] == 512

"""`plan`, `check`, `compare`, `merge` and `export` give what the commands of these names print."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import graftlm
from graftlm.cli.app import app
from graftlm.report import compare as comparing
from tests.exporting.test_gguf import saved_base
from tests.report.here import Here

ROWS = [{"prompt": f"say {word}", "completion": f"{word}!"} for word in "abcdefghijkl"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def command(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_check(tiny_llama: Path, rows: Path) -> None:
    found = graftlm.check(ROWS, tiny_llama)
    printed = command("check", rows, "--model", tiny_llama)
    plain = json.loads(json.dumps(found.to_dict()))
    assert {name: printed[name] for name in plain} == plain
    assert found.ok


def test_plan(tiny_llama: Path, rows: Path) -> None:
    found = graftlm.plan(str(tiny_llama), ROWS, memory="8GB", batch_size=2, device="cpu")
    printed = command(
        "plan", tiny_llama, "--data", rows, "--memory", "8GB", "--batch-size", 2, "--device", "cpu"
    )
    peaks = [option.predicted_peak_bytes for option in found.options]
    assert peaks == [option["predicted_peak_bytes"] for option in printed["options"]]
    asked = graftlm.RunConfig(
        model=graftlm.ModelConfig(name=str(tiny_llama)),
        data=graftlm.DataConfig(train=str(rows)),
        train=graftlm.TrainConfig(batch_size=2),
    )
    same = graftlm.plan(asked, memory="8GB", device="cpu")
    assert [option.predicted_peak_bytes for option in same.options] == peaks


def test_compare(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Here()
    run = functools.partial(comparing.api.compare, run_job=here)
    monkeypatch.setattr(comparing, "compare", run)
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    asked = graftlm.RunConfig(
        device="cpu",
        model=graftlm.ModelConfig(name=str(tiny_llama)),
        train=graftlm.TrainConfig(learning_rate=1e-3),
    )
    keywords: dict[str, Any] = {"methods": ["lora", "qlora"], "steps": 2, "out": tmp_path / "cmp"}
    found = graftlm.compare(asked, rows, **keywords)
    assert [column.name for column in found.columns] == ["LoRA", "QLoRA"]
    assert found.config.data.eval_fraction == 0.1
    assert (tmp_path / "cmp" / "compare.html").is_file()
    assert graftlm.compare(asked, rows, **keywords).columns == found.columns
    assert here.began == ["new", "new"]


def test_merge_and_export(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", "llama")
    model, tokenizer = graftlm.load_model(str(base), quantize=None)
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4))
    settings = graftlm.TrainConfig(steps=1, batch_size=2)
    run = tmp_path / "run"
    graftlm.train(model, tokenizer, ROWS, settings, out=run, progress=False)

    report = graftlm.merge(run, tmp_path / "merged", data=ROWS, force=True)
    printed = command("merge", run, "--out", tmp_path / "again", "--force")
    assert report["chosen"] == printed["chosen"]
    assert report["live_loss"] == printed["live_loss"]  # the run's own rows are these rows
    assert (tmp_path / "merged" / "merge_report.html").is_file()

    told = graftlm.export(run, "peft", tmp_path / "peft", verify=True)
    printed = command("export", run, "--to", "peft", "--out", tmp_path / "peft2", "--verify")
    assert told["verified"] == printed["verified"]

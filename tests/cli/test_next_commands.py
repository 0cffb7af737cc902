"""The commands that a result names are ones that the user can type."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from graftlm.cli._shared import program
from graftlm.cli.demo import text
from graftlm.cli.train import summary
from graftlm.data.scoring import TotalScore
from graftlm.demo.stages import DemoResult, DemoSettings
from graftlm.training import RunResult


def result(folder: Path, **changed: Any) -> RunResult:
    known: dict[str, Any] = {
        "method": "lora", "model": "m", "device": "cpu", "steps": 4, "tokens": 10,
        "supervised_tokens": 5, "tokens_per_second": 1.0, "wall_seconds": 1.0,
        "peak_memory_bytes": 1, "trainable_parameters": 1, "total_parameters": 2,
        "train_loss": 1.0, "eval_loss_before": 2.0, "eval_loss_after": 1.0,
        "adapter": str(folder / "adapter"), "finished": True, "kept_step": 4,
    }  # fmt: skip
    return RunResult(**known | changed)


@pytest.mark.parametrize("installed", [True, False])
def test_graftlm_is_called_as_this_machine_can(
    installed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if installed else None)
    monkeypatch.setattr(sys, "executable", "/a b/python")
    called = "graftlm" if installed else "'/a b/python' -m graftlm"
    assert program() == called
    said = summary(result(tmp_path), "my runs/first")
    assert f"next:   {called} merge 'my runs/first' --out merged" in said
    said = summary(result(tmp_path), "run", ["ollama"])
    assert f"next:   {called} export run --to ollama --out ollama" in said
    assert "merge" not in said
    said = summary(result(tmp_path, finished=False, adapter=None), "my runs/first")
    assert f"{called} train --resume --out 'my runs/first'" in said


def test_the_demo_ends_with_commands_for_its_own_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    score = TotalScore(rows=1, exact=1, fields_right=1, fields_total=1, parses=1)
    for method in ("lora", "full"):
        training = result(tmp_path / "run", method=method)
        ended = DemoResult([], score, score, training, 1)
        said = text(ended, tmp_path, DemoSettings(model="gemma-3-270m"))
        assert f"generate {tmp_path}/run --prompt" in said
        assert (f"merge {tmp_path}/run" in said) == (method == "lora")

"""The examples run as they are printed, on a tiny model."""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path

import pytest

from graftlm.config import load_run_config, parse_override
from graftlm.training import run
from tests.exporting.test_gguf import saved_base
from tests.exporting.test_other_targets import GEMMA3_FIRST, with_template

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_yaml_run(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    flags = [
        f"model.name={tiny_llama}",
        f"data.train={rows_file}",
        f"out={tmp_path / 'run'}",
        "train.steps=2",
    ]
    config = load_run_config(EXAMPLES / "run.yaml", [parse_override(flag) for flag in flags])
    assert run(config, progress=False).finished


def test_python_script(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(EXAMPLES / "train.py"))
    assert len((EXAMPLES / "train.py").read_text().splitlines()) <= 40
    script["main"](str(tiny_llama), str(rows_file), str(tmp_path), steps=2)
    assert "after:" in capsys.readouterr().out
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_the_notebook_runs_cell_by_cell_and_the_training_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    model = saved_base(tmp_path / "model", "llama", with_template(GEMMA3_FIRST))
    cells = json.loads((EXAMPLES / "orders.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}

    def execute(cell: dict[str, list[str]]) -> str:
        text = "".join(cell["source"]).replace("gemma-3-270m", str(model))
        text = text.replace("steps=100", "steps=2").replace("eval_steps=25", "eval_steps=1")
        text = text.replace("least_kept=0.5", "force=True")
        exec(compile(ast.parse(text), "cell", "exec"), names)
        return text

    ran = [execute(cell) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    [training] = [cell for cell in cells if "graftlm.run(" in "".join(cell["source"])]
    before = names["result"]
    capsys.readouterr()
    execute(training)
    assert names["result"] == before
    assert names["losses"] == []
    assert "finished before" in capsys.readouterr().err
    assert (tmp_path / "orders.gguf").is_file()
    assert len(ran) == 7

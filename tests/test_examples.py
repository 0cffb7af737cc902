"""The examples run as they are printed, on a tiny model."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from graftlm.config import load_run_config, parse_override
from graftlm.training import run

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

"""Adapters of PEFT with options drawn at random are read as PEFT computes them, or refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "peft_random.py"


@pytest.mark.filterwarnings("ignore")
def test_no_draw_differs_silently(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("peft_random", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["peft_random", "--count", "12", "--seed", "3"])
    monkeypatch.setattr("logging.disable", lambda level: None)  # for the tests after this one
    assert module.main() == 0
    said = capsys.readouterr().out
    assert "DIFFERENT" not in said
    assert "'equal':" in said

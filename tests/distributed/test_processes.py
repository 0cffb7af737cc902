"""Several processes train as one does: a few runs of `benchmarks/bench_processes.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_processes.py"


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def test_processes_follow_one_resume_and_end_together() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "curves", "resume", "kills"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.split(",") for line in done.stdout.splitlines()]
    kinds = [row[0] for row in rows]
    assert (kinds.count("curve"), kinds.count("resumed"), kinds.count("kill")) == (6, 6, 2), (
        done.stderr + done.stdout
    )
    assert done.returncode == 0, done.stdout


def test_what_trains_beside_adapters_follows_one_process() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "trained"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [line.split(",") for line in done.stdout.splitlines()]
    kinds = [tuple(row[1:4]) for row in rows if row[0] == "part"]
    assert len({*kinds}) == len(kinds) == 4, done.stderr + done.stdout
    assert done.returncode == 0, done.stdout

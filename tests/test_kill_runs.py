"""A few of the kills of `benchmarks/kill_runs.py`: nothing lost, nothing left, the same end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill_runs.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_commands_lose_nothing_leave_nothing_and_end_the_same() -> None:
    command = [sys.executable, str(SCRIPT), "--every", "50", "--random", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    table = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 5]
    assert [row[0] for row in table[1:]] == ["train", "merge", "export", "quantize"], done.stderr
    assert all(int(row[1]) > 20 and int(row[2]) >= 2 for row in table[1:]), done.stdout
    assert done.returncode == 0, done.stdout

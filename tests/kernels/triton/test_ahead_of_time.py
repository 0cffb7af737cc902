"""Each Triton kernel compiles for each kind of card, and fits it; no card is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has no build for this system")

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / "src/graftlm/kernels/triton"
TARGETS = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "gfx942")
VENDORS_PRODUCTS = "sm_75"
"""Triton has no tensor cores there, so products inside a kernel are left to PyTorch."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `benchmarks/kernel_tables.py` finds, in a process without the interpreter."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/kernel_tables.py", "--json"],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_kernel_is_compiled_for_every_card(table: list[dict[str, Any]]) -> None:
    written = set()
    for path in KERNELS.glob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for place, line in enumerate(lines):
            if line.startswith("@triton.jit"):
                written.add((path.stem, lines[place + 1].split("(")[0].removeprefix("def ")))
    helpers = {
        ("stored", "block_scale"),
        ("nf4_quantize", "_codes"),
        ("nf4_few_rows", "_pair_of_weights"),
    }
    for target in TARGETS:
        done = {(row["file"], row["function"]) for row in table if row["target"] == target}
        assert done == written - helpers


def test_no_kernel_that_runs_spills_registers_or_lacks_shared_memory(
    table: list[dict[str, Any]],
) -> None:
    products = {"_some_rows", "_down", "_add", "_part", "_logits", "_pull", "_absorb"}
    for row in table:
        assert row["shared"] <= row["shared_limit"], row
        if row["target"] != VENDORS_PRODUCTS or row["function"] not in products:
            assert row["spills"] == 0, row

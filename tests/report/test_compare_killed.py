"""The run of a killed comparison does not go on alone: it stops with a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from graftlm.config import RunConfig, validate
from graftlm.report.compare import api
from graftlm.training import checkpoint
from graftlm.training.hooks.metrics_file import read_metrics
from graftlm.training.lock import locked

PARENT = """
import json, sys
from graftlm.report.compare.launch import launch

launch(json.loads(sys.argv[1]), "1 of 1")
"""


def test_the_run_stops_with_a_checkpoint(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tree = {
        "out": str(out),
        "method": "lora",
        "model": {"name": str(tiny_llama)},
        "data": {"train": str(rows_file), "max_length": 64},
        "train": {"steps": 1_000_000, "batch_size": 2},
    }
    config = validate(RunConfig, tree).model_dump(mode="json")
    measure = {"outside": str(api.OUTSIDE), "score_rows": 0, "plan": False}
    request = json.dumps({"config": config, "train": "new", "measure": measure})
    with subprocess.Popen([sys.executable, "-c", PARENT, request]) as parent:
        while not read_metrics(out / "metrics.jsonl"):
            assert parent.poll() is None
            time.sleep(0.05)
        [worker] = psutil.Process(parent.pid).children()
        parent.kill()
        psutil.wait_procs([worker], timeout=60)
    with locked(out):
        last = checkpoint.latest(out / "checkpoints")
    assert last is not None
    assert last.name == f"step-{len(read_metrics(out / 'metrics.jsonl'))}"

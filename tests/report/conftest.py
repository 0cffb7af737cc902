"""Run folders that were never trained: all a page reads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftlm.config import RunConfig, validate
from graftlm.files import write_json
from graftlm.training.origin import origin_of
from graftlm.training.run_folder import begin_run

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, rows_file: Path) -> MakeRun:
    """A folder as a run of ``steps`` leaves it; keywords replace fields of the summary."""

    def make(name: str = "run", steps: int = 40, eval_every: int = 10, **changed: Any) -> Path:
        out = tmp_path / name
        tree = {"out": str(out), "model": {"name": "<model>"}, "data": {"train": str(rows_file)}}
        config = validate(RunConfig, tree | {"train": {"steps": steps}})
        begin_run(out, config, origin_of(config, None, [], []))
        rows = []
        for step in range(1, steps + 1):
            row = {
                "step": step,
                "loss": 1 + math.exp(-step / 9) + 0.1 * math.sin(9 * step),
                "grad_norm": 1.0,
                "tokens": 100,
                "supervised_tokens": 40,
                "learning_rate": 2e-4 * (1 - step / steps),
                "tokens_per_second": 900 + 50 * math.sin(step),
                "memory_bytes": 1_400_000_000 + step,
            }
            if eval_every and step % eval_every == 0:
                row["eval_loss"] = 1.1 + math.exp(-step / 9)
            rows.append(json.dumps(row) + "\n")
        (out / "metrics.jsonl").write_text("".join(rows), encoding="utf-8")
        summary = {
            "method": "qlora", "model": "<model>", "steps": steps, "tokens": 100 * steps,
            "supervised_tokens": 40 * steps, "tokens_per_second": 900.0,
            "wall_seconds": steps / 9, "peak_memory_bytes": 1_500_000_000,
            "trainable_parameters": 1000, "total_parameters": 100_000, "train_loss": 1.02,
            "eval_loss_before": 2.1, "eval_loss_after": 1.11, "adapter": str(out / "adapter"),
            "finished": True,
        }  # fmt: skip
        write_json(out / "summary.json", summary | changed)
        return out

    return make

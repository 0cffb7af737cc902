"""Resident memory of a rank: a random Llama of 1.1 billion parameters in NF4, planned and measured.

`bench_processes.py memory` calls it. Each run is `graftlm train` in processes of its own, for three
steps, one row of about a hundred tokens a process. The peak is that of the largest process, with
loading.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from random_llama import ONE_BILLION, write_llama

LENGTH = 128
PLACES = ((1, "none"), (2, "ddp"), (2, "fsdp"), (4, "fsdp"))


def _graftlm(*words: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "graftlm", *map(str, words), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def memory(work: Path, method: str = "qlora") -> bool:
    """A row for each number of processes; whether all predictions are within a tenth."""
    model, rows = work / "llama-1b", work / "long.jsonl"
    model.mkdir()
    write_llama(model, 1, alike=True, **ONE_BILLION)
    line = json.dumps({"prompt": "p" * 20, "completion": "c" * 60}) + "\n"
    rows.write_text(line * 16)
    print(
        "memory,method,engine,processes,frozen weights of a rank MB,peak of a rank MB,"
        "between steps MB,planned MB,error",
        flush=True,
    )
    good = True
    for processes, engine in PLACES:
        out = work / f"memory-{method}-{engine}-{processes}"
        same = ["--set", f"data.max_length={LENGTH}", "--set", f"train.batch_size={processes}"]
        same += ["--set", "train.gradient_checkpointing=false"]
        if processes > 1:
            same += ["--set", f"distributed={engine}", "--processes", processes]
        plan = _graftlm(
            "plan", model, "--data", rows, "--methods", method, "--memory", "20GB", *same
        )
        option = next(one for one in plan["options"] if not one["gradient_checkpointing"])
        run = ["--model", model, "--data", rows, "--method", method, "--steps", 3, "--out", out]
        result = _graftlm("train", *run, *same)
        steps = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
        parts = option["components"]
        held = parts["weights"] + parts["quantization_state"]
        planned, measured = option["predicted_peak_bytes"], result["peak_memory_bytes"]
        error = planned / measured - 1
        good = good and abs(error) <= 0.1
        figures = (held, measured, steps[-1]["memory_bytes"], planned)
        shown = ",".join(f"{figure / 1e6:.0f}" for figure in figures)
        print(f"memory,{method},{engine},{processes},{shown},{error:+.1%}", flush=True)
    return good

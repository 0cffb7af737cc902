"""Tokens a second of two processes with one thread each against one with two threads, on a CPU.

    python benchmarks/bench_threads.py [--model gemma-3-270m] [--steps 12] [--rounds 3]

The demo's rows. The two are run in turn, so that a slower hour slows both. Each figure is all
tokens of a run by the time of its steps, without the first, which also makes the engine's buffers.
Loading is not in it. The peak is that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from graftlm.demo.requests import generate_rows

BATCHES = (2, 8)


def speed(
    model: str, method: str, rows: Path, out: Path, batch: int, steps: int, processes: int
) -> tuple[float, int]:
    """Tokens a second of a run with as many threads as this machine has cores, and its peak."""
    cores = os.cpu_count() or 1
    command = [sys.executable, "-m", "graftlm", "train", "--model", model, "--data", str(rows)]
    command += ["--method", method, "--out", str(out), "--steps", str(steps), "--json"]
    command += ["--set", f"train.batch_size={batch}", "--set", "data.max_length=256"]
    if processes > 1:
        command += ["--processes", str(processes), "--set", "distributed=ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // processes))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    steps_ = [json.loads(line) for line in lines]
    seconds = sum(step["tokens"] / step["tokens_per_second"] for step in steps_)
    peak = int(json.loads(done.stdout)["peak_memory_bytes"])
    return sum(step["tokens"] for step in steps_) / seconds, peak


def main() -> None:
    """Print a row for each method and batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    processes = os.cpu_count() or 1
    print("method,rows a step,processes,threads,tokens/s (median),all rounds,peak of one MB,times")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        rows = work / "rows.jsonl"
        made = generate_rows("train", 8 * options.steps * max(BATCHES))
        rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        for method in ("qlora", "lora"):
            for batch in BATCHES:
                found: dict[int, list[float]] = {1: [], processes: []}
                peaks: dict[int, int] = {}
                for turn in range(options.rounds):
                    for count in found:
                        out = work / f"{method}-{batch}-{count}-{turn}"
                        rate, peaks[count] = speed(
                            options.model, method, rows, out, batch, options.steps, count
                        )
                        found[count].append(rate)
                one = statistics.median(found[1])
                for count, rates in found.items():
                    rate, shown = statistics.median(rates), " ".join(f"{r:.0f}" for r in rates)
                    print(
                        f"{method},{batch},{count},{processes // count},{rate:.0f},{shown},"
                        f"{peaks[count] / 1e6:.0f},{rate / one:.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()

"""Whether a long run creeps: resident memory of `graftlm train` over 2,000 steps on many lengths.

    python benchmarks/bench_steady.py [--steps 2000] [--model gemma-3-270m] [--method qlora]

The demo's rows, two a step, in batches and packed; a random Llama (hidden 256, 4 layers) unless a
model is named. Memory is read from the run's own metrics, one line a step. `creep` is how much more
there is at the end than after a tenth of the steps, when every kind of batch has been seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_plan import write_model

from graftlm.demo.requests import generate_rows

SMALL = {"vocab_size": 32768, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}


def memory(model: str, rows: Path, out: Path, steps: int, method: str, packing: bool) -> list[int]:
    """Resident bytes after each step of a run."""
    command = [str(Path(sys.executable).with_name("graftlm")), "train"]
    command += ["--model", model, "--data", str(rows)]
    command += ["--method", method, "--out", str(out), "--steps", str(steps), "--json"]
    command += ["--set", f"data.packing={str(packing).lower()}", "--set", "data.max_length=256"]
    command += ["--set", "train.batch_size=2", "--set", f"train.save_steps={steps}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["memory_bytes"] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--model")
    parser.add_argument("--method", default="qlora", choices=["lora", "qlora"])
    arguments = parser.parse_args()
    steps = arguments.steps
    marks = [steps // 100, steps // 10, steps // 4, steps // 2, steps]
    print("rows    ", *(f"step {mark:>5,}" for mark in marks), "    creep")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = folder / "rows.jsonl"
        made = generate_rows("train", 2400)
        rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        if arguments.model is None:
            write_model("llama", folder / "model", **SMALL)
        model = arguments.model or str(folder / "model")
        for name, packing in (("batches", False), ("packed", True)):
            held = memory(model, rows, folder / name, steps, arguments.method, packing)
            shown = [f"{held[mark - 1] / 1e6:>7,.0f} MB" for mark in marks]
            print(
                f"{name:8}", *shown, f"{(held[-1] - held[marks[1] - 1]) / 1e6:+6.1f} MB", flush=True
            )


if __name__ == "__main__":
    main()

"""How much of the gap between 4 and 16 bits a calibrated base closes, on several texts.

    python benchmarks/bench_calibrated.py --out DIR --text NAME=FILE … [--calibrate NAME …]
                                          [--train NAME] [--steps 100]

    closed = (loss_rounded - loss_calibrated) / (loss_rounded - loss_16bit)

and the same of KL(16 bits ‖ 4 bits). Each NAME is calibrated on the first half of its rows and
measured on the second; ``shipped`` is the text that comes with graftlm, and not measured. Then
transformers with bitsandbytes opens each folder and measures the same rows, and with ``--train``
QLoRA starts from each base: the loss of rows of its second half after the steps. One line of
JSON a result on stdout.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from graftlm.config import DataConfig
from graftlm.data.example import Example
from graftlm.data.examples import load_examples
from graftlm.exporting.measure import compare_passes, pass_over
from graftlm.models import load_tokenizer, quantize_folder, resolve
from graftlm.models.named_weights import named_weights
from graftlm.models.quantize_calibrated import SHIPPED, quantize_calibrated
from graftlm.training import evaluate


def main() -> None:
    """Quantise once plainly and once a calibration, and measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", action="append", required=True, help="NAME=FILE")
    parser.add_argument("--calibrate", action="append", default=[])
    parser.add_argument("--rows", type=int, default=48, help="measured rows a text")
    parser.add_argument("--train", help="NAME: train QLoRA from each base on its first half")
    parser.add_argument("--steps", type=int, default=100)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(a.model)
    config = DataConfig(max_length=256, truncation="split", loss_on="all")
    halves, measured = {SHIPPED: SHIPPED}, {}
    for pair in a.text:
        name, _, file = pair.partition("=")
        lines = Path(file).read_text(encoding="utf-8").split("\n\n" if file.endswith("t") else "\n")
        kind = ".txt" if file.endswith("t") else ".jsonl"
        parts = lines[: len(lines) // 2], lines[len(lines) // 2 :]
        for which, part in zip(("first", "second"), parts, strict=True):
            join = "\n\n" if kind == ".txt" else "\n"
            (a.out / f"{name}-{which}{kind}").write_text(join.join(filter(None, part)))
        halves[name] = str(a.out / f"{name}-first{kind}")
        rows = list(load_examples(str(a.out / f"{name}-second{kind}"), tokenizer, config))
        measured[name] = rows[:: max(1, len(rows) // a.rows)][: a.rows]

    dense = named_weights(resolve(a.model).path)
    of_dense = {name: pass_over(dense.streamed(), rows, 0) for name, rows in measured.items()}
    base = {name: compare_passes(one, one).loss for name, one in of_dense.items()}
    print(json.dumps({"what": "16bit", "loss": base}), flush=True)
    if not (a.out / "rounded").exists():
        quantize_folder(a.model, a.out / "rounded")

    def measure(folder: Path) -> dict[str, Any]:
        weights = named_weights(folder)
        return {
            name: compare_passes(of_dense[name], pass_over(weights.streamed(), rows, 0))
            for name, rows in measured.items()
        }

    rounded = measure(a.out / "rounded")
    said = {n: {"loss": one.loss, "kl": one.kl} for n, one in rounded.items()}
    print(json.dumps({"what": "rounded", "texts": said}), flush=True)
    for name in a.calibrate or [SHIPPED, *measured]:
        folder, began = a.out / f"fitted-{name}", time.perf_counter()
        report = None if folder.exists() else quantize_calibrated(a.model, folder, halves[name])
        seconds = time.perf_counter() - began
        found = measure(folder)
        said = {
            text: {
                "loss": one.loss,
                "kl": one.kl,
                "closed": (rounded[text].loss - one.loss) / (rounded[text].loss - base[text]),
                "closed_kl": 1 - one.kl / rounded[text].kl,
            }
            for text, one in found.items()
        }
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        tokens = None if report is None else report["calibration_tokens"]
        told = {"what": "fitted", "on": name, "seconds": seconds, "peak_memory_bytes": peak}
        print(json.dumps({**told, "tokens": tokens, "texts": said}), flush=True)
    folders = [a.out / "rounded", *sorted(a.out.glob("fitted-*"))]
    for folder in folders:
        found_there = {name: bitsandbytes_loss(folder, rows) for name, rows in measured.items()}
        told = {"what": "bitsandbytes", "base": folder.name, "loss": found_there}
        print(json.dumps(told), flush=True)
    for folder in folders if a.train else []:
        summary = trained(folder, a.out, a.train, a.steps)
        told = {"what": "trained", "base": folder.name, "on": a.train, "steps": a.steps}
        names = ("eval_loss_before", "eval_loss_after", "wall_seconds")
        print(json.dumps({**told, **{name: summary[name] for name in names}}), flush=True)


def bitsandbytes_loss(folder: Path, rows: Sequence[Example]) -> float:
    """Loss of the rows as transformers and bitsandbytes compute it, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    modules: list[Any] = list(model.modules())
    for module in modules:
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
    return evaluate(model, rows).loss


def trained(base: Path, out: Path, text: str, steps: int) -> dict[str, Any]:
    """The summary of a QLoRA run from the base, by the command."""
    run = out / f"run-{base.name}-{text}-{steps}"
    if not (run / "summary.json").exists():
        first, second = (next(out.glob(f"{text}-{part}.*")) for part in ("first", "second"))
        held = out / f"{text}-held{second.suffix}"
        rows = second.read_text(encoding="utf-8").rstrip("\n").split("\n")
        held.write_text("\n".join(rows[:: max(1, len(rows) // 96)][:96]) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "graftlm", "train", "--method", "qlora", "--json"]
        command += ["--model", str(base), "--data", str(first), "--eval-data", str(held)]
        command += ["--steps", str(steps), "--out", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return summary


if __name__ == "__main__":
    main()

"""How much of the gap between 4 and 16 bits a calibrated base closes, on several texts.

    python benchmarks/bench_calibrated.py --out DIR --text NAME=FILE … [--calibrate NAME …]

    closed = (loss_rounded - loss_calibrated) / (loss_rounded - loss_16bit)

and the same of KL(16 bits ‖ 4 bits). Each NAME is calibrated on the first half of its rows and
measured on the second; ``shipped`` is the text that comes with graftlm, and not measured. One line
of JSON a result on stdout.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from graftlm.config import DataConfig
from graftlm.data.examples import load_examples
from graftlm.exporting.measure import compare_passes, pass_over
from graftlm.models import load_tokenizer, quantize_folder, resolve
from graftlm.models.named_weights import named_weights
from graftlm.models.quantize_calibrated import SHIPPED, quantize_calibrated


def main() -> None:
    """Quantise once plainly and once a calibration, and measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", action="append", required=True, help="NAME=FILE")
    parser.add_argument("--calibrate", action="append", default=[])
    parser.add_argument("--rows", type=int, default=48, help="measured rows a text")
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


if __name__ == "__main__":
    main()

"""Quality of the variants on real text: held-out loss at a probed learning rate, several seeds.

    python benchmarks/bench_quality.py --data FOLDER/e2e/train.jsonl [--steps 40] [--seeds 3]

Every variant trains the built-in model on the same rows for the same number of steps, at the rate
that `train.learning_rate=auto` chose for it with the first seed. The held-out rows are of prompts
that no training row has. Then LoRA is trained at each rate of the probe's grid, to see what the
choice is worth. A row of CSV is printed as soon as it is known; rows in --out are not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import graftlm
from graftlm.config import recorded_config
from graftlm.training.rate_probe import grid
from graftlm.training.resolve import default_learning_rate

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("lora", {}),
    "rsLoRA": ("lora", {"use_rslora": True}),
    "DoRA": ("lora", {"variant": "dora"}),
    "PiSSA": ("lora", {"init": "pissa_niter_4"}),
    "EVA": ("lora", {"init": "eva"}),
    "QLoRA": ("qlora", {}),
    "LoftQ": ("qlora", {"init": "loftq"}),
}
COLUMNS = ("variant", "seed", "rate", "probed", "steps", "before", "after", "seconds")


def split(source: Path, folder: Path, held: int) -> tuple[Path, Path]:
    """Files of the training rows and of ``held`` rows whose prompts are not trained on."""
    with source.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    chosen = set(prompts[:: max(1, len(prompts) // held)][:held])
    files = folder / "train.jsonl", folder / "held.jsonl"
    seen: set[str] = set()
    for file, wanted in zip(files, (False, True), strict=True):
        kept = [row for row in rows if (row["prompt"] in chosen) is wanted]
        if wanted:  # one row of each prompt
            kept = [r for r in kept if not (r["prompt"] in seen or seen.add(r["prompt"]))]  # type: ignore[func-returns-value]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return files


def main() -> None:
    """Print a line of CSV for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held", type=int, default=96)
    parser.add_argument("--out", type=Path, default=Path("quality.csv"))
    options = parser.parse_args()
    done: dict[tuple[str, int, str], dict[str, str]] = {}
    if options.out.exists():
        with options.out.open() as file:
            done = {(r["variant"], int(r["seed"]), r["probed"]): r for r in csv.DictReader(file)}
    else:
        options.out.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        train, held = split(options.data, folder, options.held)

        def run(variant: str, seed: int, rate: float | str, probed: str) -> float:
            if (variant, seed, probed) in done:
                return float(done[variant, seed, probed]["rate"])
            method, lora = VARIANTS[variant]
            out = folder / f"{variant}-{seed}-{probed}"
            config = graftlm.RunConfig(
                method=method,
                device="cpu",
                out=str(out),
                model=graftlm.ModelConfig(name=options.model),
                data=graftlm.DataConfig(train=str(train), eval=str(held)),
                lora=graftlm.LoRAConfig(**lora),
                train=graftlm.TrainConfig(
                    steps=options.steps,
                    batch_size=options.batch_size,
                    learning_rate=rate,
                    seed=seed,
                ),
            )
            result = graftlm.run(config, progress=False)
            used = recorded_config(out / "config.yaml").train.learning_rate
            row = (variant, seed, used, probed, result.steps, result.eval_loss_before)
            line = ",".join(map(str, (*row, result.eval_loss_after, round(result.wall_seconds))))
            with options.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(line, flush=True)
            assert isinstance(used, float)
            return used

        rates = {variant: run(variant, 0, "auto", "yes") for variant in VARIANTS}
        for rate in grid(default_learning_rate("lora")):
            run("LoRA", 0, rate, f"grid {rate:g}")
        for seed in range(1, options.seeds):
            for variant, rate in rates.items():
                run(variant, seed, rate, "with seed 0")


if __name__ == "__main__":
    main()

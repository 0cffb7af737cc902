"""What each way to merge keeps of a tune, and what training through the merge costs.

    python benchmarks/bench_merge.py ROWS.jsonl --out DIR [--steps 80] [--train-rows 0]

It trains QLoRA and QLoRA with ``lora.merge_aware=nf4`` on the same rows in the same order, merges
both to 16 bits and to NF4, and opens the NF4 folders again with transformers and bitsandbytes. One
line of JSON a result on stdout; ``results.json`` in DIR. Prompts of the held-out rows are in no
training row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Train, merge and open, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--learning-rate", default="2e-4")
    parser.add_argument("--train-rows", type=int, default=0, help="0: all")
    parser.add_argument("--held-rows", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["plain", "aware"], help="train only one of the two")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    train, held = split(a.rows, a.out, a.train_rows, a.held_rows, a.seed)
    results: list[dict[str, Any]] = []

    def tell(**result: Any) -> None:
        results.append(result)
        print(json.dumps(result), flush=True)
        (a.out / "results.json").write_text(json.dumps(results, indent=1))

    for kind, setting in (("plain", ""), ("aware", "nf4")):
        if a.only not in (None, kind):
            continue
        run = a.out / f"{kind}-{a.seed}"
        if not (run / "summary.json").exists():
            graftlm(
                *("train", "--model", a.model, "--data", train, "--eval-data", held),
                *("--steps", a.steps, "--learning-rate", a.learning_rate, "--out", run),
                *("--seed", a.seed, "--set", f"lora.merge_aware={setting}", "--json"),
            )
        summary = json.loads((run / "summary.json").read_text())
        names = ("wall_seconds", "tokens_per_second", "peak_memory_bytes", "eval_loss_after")
        tell(what="train", kind=kind, seed=a.seed, **{name: summary[name] for name in names})
        for to in ("16bit", "nf4"):
            out = a.out / f"{kind}-{a.seed}-{to}"
            if not out.exists():
                graftlm("merge", run, "--out", out, "--to", to, "--data", held, "--force", "--json")
            report = json.loads((out / "merge_report.json").read_text())
            for one in report["candidates"]:
                figures = {k: v for k, v in one.items() if k != "layers"}
                tell(what="merge", run=kind, seed=a.seed, to=to, **figures)
            told = {name: report[name] for name in ("base_loss", "live_loss", "chosen", "proof")}
            tell(what="merged", run=kind, seed=a.seed, to=to, **told)
        folder = a.out / f"{kind}-{a.seed}-nf4"
        tell(what="bitsandbytes", run=kind, seed=a.seed, loss=bitsandbytes_loss(folder, held))


def split(rows: Path, out: Path, count: int, held: int, seed: int) -> tuple[Path, Path]:
    """Write the rows to train on and the held-out ones; the prompt decides."""
    lines = rows.read_text(encoding="utf-8").rstrip("\n").split("\n")  # a text may hold U+2028
    random.Random(seed).shuffle(lines)
    aside = [line for line in lines if _bucket(line) == 0]
    kept = [line for line in lines if _bucket(line) != 0]
    paths = out / f"train-{seed}.jsonl", out / "held.jsonl"
    paths[0].write_text("\n".join(kept[: count or None]) + "\n", encoding="utf-8")
    random.Random(0).shuffle(aside)
    paths[1].write_text("\n".join(sorted(aside)[:: max(1, len(aside) // held)][:held]) + "\n")
    return paths


def _bucket(line: str) -> int:
    row = json.loads(line)
    prompt = row["prompt"] if "prompt" in row else json.dumps(row["messages"][:-1])
    return int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 10


def graftlm(*arguments: Any) -> None:
    """Run a command of graftlm; its messages go to stderr."""
    command = [sys.executable, "-m", "graftlm", *map(str, arguments)]
    print(" ".join(command[2:]), file=sys.stderr)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def bitsandbytes_loss(folder: Path, held: Path) -> float:
    """The held-out loss of a folder as transformers and bitsandbytes compute it, in float32."""
    code = (
        "import sys, json, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig\n"
        "from graftlm.config import DataConfig\n"
        "from graftlm.data.examples import load_examples\n"
        "from graftlm.training import evaluate\n"
        "how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4',\n"
        "    bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
        "for m in model.modules():\n"
        "    if hasattr(m, 'compute_dtype'): m.compute_dtype = torch.float32\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "rows = load_examples(sys.argv[2], tokenizer, DataConfig(), purpose='eval')\n"
        "print(evaluate(model, rows).loss)\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(held)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()

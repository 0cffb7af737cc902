"""The same rows in the same order, trained here and with PEFT (+ bitsandbytes), in turn.

    python benchmarks/bench_peers.py [--data e2e|gsm8k|demo] [--steps 20] [--repeats 3] [--batch 8]

Each run is a process of its own: peak resident memory is that process's, loading included. Runs
alternate, so that a machine whose speed drifts treats all alike; medians over the repeats are
printed as CSV, and ratios against each peer below. Every repeat draws its adapters anew, from the
same seed on all sides. Prompts are masked. Peers are given a batch of rows padded to the longest,
as they pad it; ours is laid out as in training.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OURS = ("graftlm-lora", "graftlm-qlora", "graftlm-qlora-int8")
"""The last one with `model.embeddings=int8`."""
PEERS = ("peft-lora-f32", "peft-lora-bf16", "peft-qlora-f32", "peft-qlora-bf16")
LEARNING_RATE = 2e-4
ROWS = 4000
"""More than any run here reads."""


def rows_of(name: str) -> list[dict[str, str]]:
    """Prompt/completion rows: a data folder beside the project, else the demo's."""
    path = Path(__file__).parents[2] / "shared" / "data" / name / "train.jsonl"
    if not path.exists():
        from graftlm.demo.requests import generate_rows

        return generate_rows("train", 2400)
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, ROWS)]
    return [
        row
        if "prompt" in row
        else {"prompt": row["messages"][0]["content"], "completion": row["messages"][-1]["content"]}
        for row in rows
    ]


def worker(arguments: argparse.Namespace) -> None:
    """One run in this process; prints one JSON line."""
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    side, method = arguments.worker.split("-", 1)
    load = _load_ours if side == "graftlm" else _load_peer
    model, examples, held_out = load(method, arguments)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    step = _our_step if side == "graftlm" else _peer_step
    before = _held_out_loss(side, model, held_out)
    seconds, tokens, supervised = [], 0, 0
    model.train()
    with _as_in_training(side):
        for index in range(arguments.steps):
            first = index * arguments.batch
            rows = [examples[order[(first + j) % len(order)]] for j in range(arguments.batch)]
            batches = _batches(model, rows, side)
            started = time.perf_counter()
            step(model, batches, optimizer, parameters)
            seconds.append(time.perf_counter() - started)
            tokens += sum(batch.tokens for batch in batches)
            supervised += sum(batch.supervised_tokens for batch in batches)
    result = {
        "run": arguments.worker,
        "tokens_per_second": tokens / sum(seconds),
        "supervised_tokens_per_second": supervised / sum(seconds),
        "peak_memory_gb": _peak() / 1e9,
        "eval_before": before,
        "eval_after": _held_out_loss(side, model, held_out),
        "step_seconds": statistics.median(seconds),
    }
    print(json.dumps(result), flush=True)


def _as_in_training(side: str) -> contextlib.AbstractContextManager[None]:
    """What `graftlm train` does around its steps; peers run as their trainers do, without it."""
    if side != "graftlm":
        return contextlib.nullcontext()
    from graftlm.system import long_lived_objects_set_aside

    return long_lived_objects_set_aside()


def _load_ours(method: str, arguments: argparse.Namespace) -> tuple[Any, list[Any], list[Any]]:
    """In the order of `graftlm train`: rows first, then the model without the tokenizer."""
    import graftlm
    from graftlm.models import load_tokenizer, load_weights
    from graftlm.system import release_freed_memory, return_freed_memory

    return_freed_memory()
    tokenizer = load_tokenizer("gemma-3-270m")
    examples, held_out = _examples(arguments.rows, tokenizer, arguments.max_length)
    del tokenizer
    release_freed_memory()
    kind, _, int8 = method.partition("-")
    model = load_weights(
        "gemma-3-270m",
        quantize="nf4" if kind == "qlora" else None,
        embeddings="int8" if int8 else "keep",
    )
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=16, alpha=32))
    return model, examples, held_out


def _load_peer(method: str, arguments: argparse.Namespace) -> tuple[Any, list[Any], list[Any]]:
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from graftlm.models import resolve

    path = resolve("gemma-3-270m").path
    dtype = torch.bfloat16 if method.endswith("bf16") else torch.float32
    if method.startswith("qlora"):
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, device_map="cpu", quantization_config=settings
        )
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        # On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks its weights in the first evaluation,
        # and no gradient passes through the layer from then on: the peer would not learn.
        for layer in model.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(path)
    return get_peft_model(model, config), *_examples(
        arguments.rows, tokenizer, arguments.max_length
    )


def _examples(path: str, tokenizer: Any, max_length: int) -> tuple[list[Any], list[Any]]:
    from graftlm.config import DataConfig
    from graftlm.data import load_examples

    config = DataConfig(max_length=max_length, truncation="right", workers=0)
    examples = list(load_examples(path, tokenizer, config))
    return examples[:-64], examples[-64:]


def _batches(model: Any, rows: list[Any], side: str) -> list[Any]:
    """What a step of each reads: one padded batch, or ours in the parts that training makes."""
    from graftlm.data import collate
    from graftlm.training.batching import micro_batches

    return [collate(rows, 0)] if side == "peft" else micro_batches(model, rows)


def _our_step(model: Any, batches: list[Any], optimizer: Any, parameters: list[Any]) -> None:
    from graftlm import TrainConfig
    from graftlm.training.next_token import NextToken
    from graftlm.training.step import train_step

    train_step(model, batches, optimizer, parameters, 1.0, NextToken(TrainConfig()))


def _peer_step(model: Any, batches: list[Any], optimizer: Any, parameters: list[Any]) -> None:
    import torch

    (batch,) = batches
    model(**_inputs(batch)).loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _inputs(batch: Any) -> dict[str, Any]:
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": batch.labels,
    }


def _held_out_loss(side: str, model: Any, rows: list[Any]) -> float:
    import torch

    from graftlm.data import collate
    from graftlm.training import evaluate

    if side == "graftlm":
        return evaluate(model, rows, 8).loss
    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), 8):
            batch = collate(rows[start : start + 8], 0)
            total += float(model(**_inputs(batch)).loss) * batch.supervised_tokens
            count += batch.supervised_tokens
    model.train()
    return total / count


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="e2e", choices=["e2e", "gsm8k", "demo"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0, help="of the first repeat")
    parser.add_argument("--runs", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        rows = rows_of(arguments.data)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.runs}
        for seed in range(arguments.seed, arguments.seed + arguments.repeats):
            for name in arguments.runs:
                command = [sys.executable, __file__, *sys.argv[1:]]
                command += ["--worker", name, "--rows", str(path), "--seed", str(seed)]
                result = subprocess.run(command, capture_output=True, text=True, check=False)
                if result.returncode:
                    raise SystemExit(f"{name} failed:\n{result.stderr[-3000:]}")
                found[name].append(json.loads(result.stdout.splitlines()[-1]))
                print(result.stdout.splitlines()[-1], file=sys.stderr, flush=True)
    report(found, arguments)
    return None


def report(found: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> None:
    """Medians as CSV, then each of our runs against each peer."""
    import torch

    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "run"}
        for name, runs in found.items()
    }
    print(f"# {platform.processor() or platform.machine()}, torch {torch.__version__}, ", end="")
    print(f"{arguments.data}, batch {arguments.batch}, {arguments.steps} steps, medians")
    table = csv.writer(sys.stdout)
    table.writerow(["run", *next(iter(medians.values()))])
    for name, row in medians.items():
        table.writerow([name, *(f"{value:.4g}" for value in row.values())])
    for name in filter(lambda n: n.startswith("graftlm"), medians):
        for peer in filter(lambda n: n.startswith("peft"), medians):
            speed = medians[name]["tokens_per_second"] / medians[peer]["tokens_per_second"]
            memory = medians[name]["peak_memory_gb"] / medians[peer]["peak_memory_gb"]
            step = medians[peer]["step_seconds"] / medians[name]["step_seconds"]
            loss = medians[name]["eval_after"] / medians[peer]["eval_after"] - 1
            print(
                f"{name} / {peer}: speed {speed:.2f}x (median step {step:.2f}x), "
                f"memory {memory:.0%}, loss {loss:+.2%}"
            )


if __name__ == "__main__":
    main()

"""Predicted against measured peak memory and time of a step: `plan --verify` over many settings.

    python benchmarks/bench_plan.py [--gemma gemma-3-270m] [--only llama] [--threads N]

Random models of three architectures are written to a temporary folder (a Llama with a vocabulary of
8,192, a Qwen 2 with 32,000 and a tied head, a Gemma 3 with 131,072), or, with --gemma, a real
Gemma. Every setting is run for real in a process of its own, loading included, for three steps.
CSV on stdout; the largest and the median error at the end, on stderr.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from graftlm.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.planning import make_plan, run_trial
from graftlm.planning.baseline_memory import byte_tokenizer
from graftlm.system import versions

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "LlamaConfig",
        {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4},
    ),
    "qwen2": (
        "Qwen2Config",
        {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048,
         "num_hidden_layers": 10, "num_attention_heads": 12, "num_key_value_heads": 4,
         "tie_word_embeddings": True},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"vocab_size": 131072, "hidden_size": 512, "intermediate_size": 1536,
         "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 1,
         "head_dim": 128, "tie_word_embeddings": True},
    ),
}  # fmt: skip

# model, method, checkpointing, batch, length
SETTINGS = [
    ("llama", "full", False, 1, 512),
    ("llama", "full", True, 4, 512),
    ("llama", "lora", False, 8, 128),
    ("llama", "lora", True, 2, 1024),
    ("llama", "qlora", False, 1, 2048),
    ("llama", "qlora", True, 8, 256),
    ("qwen2", "full", False, 4, 128),
    ("qwen2", "full", True, 1, 1024),
    ("qwen2", "lora", False, 2, 512),
    ("qwen2", "lora", True, 1, 2048),
    ("qwen2", "qlora", False, 4, 256),
    ("qwen2", "qlora", True, 2, 512),
    ("gemma3", "full", False, 1, 256),
    ("gemma3", "full", True, 1, 128),
    ("gemma3", "lora", False, 1, 512),
    ("gemma3", "lora", True, 4, 256),
    ("gemma3", "qlora", False, 2, 256),
    ("gemma3", "qlora", True, 1, 1024),
    ("gemma3", "qlora-int8", False, 2, 256),
]
COLUMNS = [
    "model", "method", "checkpointing", "batch", "length", "predicted_mb", "measured_mb", "error",
    "peak_at", "loading_mb", "resident_mb", "predicted_s", "measured_s", "components", "versions",
]  # fmt: skip


def write_model(name: str, folder: Path, **changes: Any) -> None:
    kind, settings = SHAPES[name]
    torch.manual_seed(0)
    architecture = getattr(transformers, kind)(**settings | changes)
    model = transformers.AutoModelForCausalLM.from_config(architecture, dtype=torch.bfloat16)
    # Logits as spread out as a trained model's, most p negligible: the loss collects what is not.
    spread = 6 / (architecture.initializer_range * architecture.hidden_size**0.5)
    with torch.no_grad():
        model.model.norm.weight.add_(spread - 1)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def measure(path: str, method: str, checkpointing: bool, batch: int, length: int) -> dict[str, Any]:
    method, _, int8 = method.partition("-")
    config = RunConfig(
        model=ModelConfig(name=path, embeddings="int8" if int8 else "keep"),
        data=DataConfig(max_length=length),
        train=TrainConfig(batch_size=batch, gradient_checkpointing=checkpointing),
    )
    plan = make_plan(config, memory="100TB", methods=[method])  # type: ignore[list-item]
    option = next(o for o in plan.options if o.gradient_checkpointing == checkpointing)
    found = run_trial(option.applied(config), length)
    return {
        "predicted_mb": round(option.predicted_peak_bytes / 1e6),
        "measured_mb": round(found.peak_bytes / 1e6),
        "error": round(option.predicted_peak_bytes / found.peak_bytes - 1, 4),
        "peak_at": option.peak_at,
        "loading_mb": round(found.loading_peak_bytes / 1e6),
        "resident_mb": round(found.resident_bytes / 1e6),
        "predicted_s": round(option.seconds_per_step or 0.0, 2),
        "measured_s": round(found.seconds_per_step, 2),
        "components": "; ".join(f"{k} {v / 1e6:.0f}" for k, v in option.components.items() if v),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gemma", help="a real Gemma in place of the random one")
    parser.add_argument("--only", help="one of the models")
    arguments = parser.parse_args()
    stamp = " ".join(f"{name} {version}" for name, version in versions().items())
    rows = csv.DictWriter(sys.stdout, COLUMNS)
    rows.writeheader()
    errors = []
    with tempfile.TemporaryDirectory() as name:
        for model, *setting in SETTINGS:
            if arguments.only not in (None, model):
                continue
            path = Path(name) / model
            if not path.exists():
                write_model(model, path)
            real = arguments.gemma if model == "gemma3" else None
            found = measure(real or str(path), *setting)  # type: ignore[arg-type]
            errors.append(abs(found["error"]))
            first = dict(zip(COLUMNS, (model, *setting), strict=False))
            rows.writerow({**first, **found, "versions": stamp})
            sys.stdout.flush()
    print(
        f"largest error {max(errors):.1%}, median {statistics.median(errors):.1%}", file=sys.stderr
    )


if __name__ == "__main__":
    main()

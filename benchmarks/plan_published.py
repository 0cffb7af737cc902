"""Plans for a GPU this machine does not have, against published figures.

    python benchmarks/plan_published.py

Traced with fake tensors on ``cuda`` from configs alone. Published: QLoRA (arXiv 2305.14314; 7B in
about 5 to 6 GB, 65B under 48 GB) and PEFT's method comparison (Llama-3.2-3B, MetaMathQA: full
36.2 GiB, LoRA rank 32 20.8 GiB). What is assumed stands in each row. CSV on stdout.
"""

from __future__ import annotations

import csv
import resource
import sys
import time
from typing import Any

from transformers import LlamaConfig

from graftlm.config import DataConfig, LoRAConfig, RunConfig, TrainConfig
from graftlm.planning import make_plan

LLAMA = {"vocab_size": 32000, "dtype": "bfloat16"}
MODELS: dict[str, dict[str, Any]] = {
    "llama-2-7b": LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama-2-13b": LLAMA
    | {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "llama-65b": LLAMA
    | {
        "hidden_size": 8192,
        "intermediate_size": 22016,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "llama-2-70b": LLAMA
    | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "llama-3.2-3b": {
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    },
}

# model, method, checkpointing, batch, length, rank, targets, published
ROWS: list[tuple[str, str, bool, int, int, int, Any, str]] = [
    ("llama-2-7b", "qlora", True, 1, 512, 64, "all-linear", "5-6 GB (QLoRA)"),
    ("llama-2-13b", "qlora", True, 1, 512, 64, "all-linear", "about 10 GB (QLoRA)"),
    ("llama-65b", "qlora", True, 1, 512, 64, "all-linear", "< 48 GB (QLoRA)"),
    ("llama-2-70b", "qlora", True, 1, 512, 64, "all-linear", ""),
    ("llama-2-7b", "qlora", True, 1, 512, 5, "all-linear", "adapters of 0.2 % (QLoRA)"),
    ("llama-2-7b", "lora", True, 1, 512, 64, "all-linear", ""),
    ("llama-3.2-3b", "lora", False, 4, 768, 32, ("q_proj", "v_proj"), "20.8 GiB (PEFT)"),
    ("llama-3.2-3b", "full", False, 4, 768, 32, "all-linear", "36.2 GiB (PEFT, all in bfloat16)"),
]


def main() -> None:
    rows = csv.writer(sys.stdout)
    rows.writerow(
        [
            "model",
            "method",
            "checkpointing",
            "batch",
            "length",
            "rank",
            "predicted_gb",
            "published",
            "seconds_to_plan",
            "components_gb",
            "peak_at",
        ]
    )
    for model, method, checkpointing, batch, length, rank, targets, published in ROWS:
        config = RunConfig(
            lora=LoRAConfig(rank=rank, targets=targets),
            data=DataConfig(max_length=length),
            train=TrainConfig(batch_size=batch, gradient_checkpointing=checkpointing),
        )
        started = time.perf_counter()
        plan = make_plan(
            config,
            architecture=LlamaConfig(**MODELS[model]),
            memory="10TB",
            device="cuda",
            methods=[method],  # type: ignore[list-item]
        )
        option = next(o for o in plan.options if o.gradient_checkpointing == checkpointing)
        parts = {k: round(v / 1e9, 2) for k, v in option.components.items() if v > 5e6}
        rows.writerow(
            [
                model,
                method,
                checkpointing,
                batch,
                length,
                rank,
                f"{option.predicted_peak_bytes / 1e9:.2f}",
                published,
                f"{time.perf_counter() - started:.1f}",
                "; ".join(f"{k} {v}" for k, v in parts.items()),
                option.peak_at,
            ]
        )
        sys.stdout.flush()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"this process peaked at {peak / 1e9:.2f} GB", file=sys.stderr)


if __name__ == "__main__":
    main()

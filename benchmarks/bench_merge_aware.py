"""What training through the merge costs: its optimiser step beside QLoRA's, turn by turn.

    python benchmarks/bench_merge_aware.py [--rows 8] [--length 64] [--steps 6]

Both models are in one process and step in turn on the same tokens, so that the machine's state is
the same for both. One line of JSON on stdout: the median seconds of a step, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

import graftlm
from graftlm.adapters import original_weights, train_through_merge
from graftlm.data.batch import Batch
from graftlm.system import return_freed_memory
from graftlm.training.next_token import NextToken
from graftlm.training.step import train_step


def prepare(name: str, rows: torch.Tensor, through: bool) -> Callable[[], float]:
    """A function that does one step and returns its seconds."""
    model, _ = graftlm.load_model(name, quantize="nf4")
    torch.manual_seed(0)
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=16, alpha=32))
    if through:
        train_through_merge(model, original_weights(name))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    objective = NextToken(graftlm.TrainConfig(micro_batch_tokens=512))
    model.train()

    def step() -> float:
        began = time.perf_counter()
        batch = Batch(rows, rows.clone(), None, None, rows.numel())
        train_step(model, [batch], optimizer, parameters, 1.0, objective)
        return time.perf_counter() - began

    return step


def main() -> None:
    """Step in turn and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    a = parser.parse_args()
    return_freed_memory()
    torch.manual_seed(0)
    rows = torch.randint(1000, 50_000, (a.rows, a.length))
    steps = [prepare(a.model, rows, through) for through in (False, True)]
    for step in steps:
        step()  # warm up
    seconds: list[list[float]] = [[], []]
    for _ in range(a.steps):
        for which, step in enumerate(steps):
            seconds[which].append(step())
    plain, through = map(statistics.median, seconds)
    told = {"tokens": rows.numel(), "qlora": plain, "merge_aware": through}
    print(json.dumps({**told, "ratio": through / plain, "all": seconds}))


if __name__ == "__main__":
    main()

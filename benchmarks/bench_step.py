"""Where the time of a training step goes: share of matrix products, and distance from the floor.

    python benchmarks/bench_step.py [--batch 1] [--length 512] [--steps 7]

Gemma-3-270M, rank 16 on all linear layers, real text (gsm8k where it lies beside the project, else
the demo's) cut to one length, every token supervised. For graftlm (LoRA and QLoRA, in bfloat16
where the CPU multiplies it, and in float32) and PEFT (LoRA float32), in a process of its own each:

    step        median time
    products    share of it inside matrix products: linear layers, adapters, attention, output layer
    GFLOP       operations of those products, counted on a step
    floor       GFLOP / the rate of a large product in that type, measured beside it
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

RUNS = (
    "peft-lora-float32",
    "graftlm-lora-float32",
    "graftlm-qlora-float32",
    "graftlm-lora-auto",
    "graftlm-qlora-auto",
)
PRODUCTS = ("mm", "bmm", "addmm", "addmm_", "baddbmm", "linear")
"""PyTorch's operators that multiply matrices, besides any attention."""
OURS = ("nf4_linear", "lora_linear", "factor_gradient", "attention", "cross_entropy")
"""Parts of the names of graftlm's."""


def rate(dtype: Any) -> float:
    """Operations a second of a large product."""
    import torch

    a, b = torch.randn(512, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    times = []
    for _ in range(30):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return float(2 * 512 * 2048 * 2048 / statistics.median(times))


def is_product(name: str) -> bool:
    """Whether a profiled operator is one, as `aten::mm` or `graftlm::nf4_lora_linear`.

    The time of our differentiable operators is booked on the autograd function around them.
    """
    space, _, operator = name.partition("::")
    if space == "graftlm" or name.startswith("GeneratedBackwardFor_graftlm"):
        return any(part in name for part in OURS)
    return space == "aten" and (operator in PRODUCTS or "attention" in operator)


def prepare(run: str, batch: int, length: int) -> tuple[Any, Callable[[], Any]]:
    """The model of a run, and its step."""
    import torch

    import graftlm
    from graftlm.data.batch import Batch
    from graftlm.training.next_token import NextToken
    from graftlm.training.step import train_step

    side, method, dtype = run.split("-")
    if side == "peft":
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        from graftlm.models import resolve

        path = resolve("gemma-3-270m").path
        base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        model: Any = get_peft_model(
            base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        )
    else:
        model, _ = graftlm.load_model(
            "gemma-3-270m", quantize="nf4" if method == "qlora" else None, dtype=dtype
        )
        graftlm.add_lora(model, graftlm.LoRAConfig(rank=16, alpha=32))
    from bench_peers import rows_of

    from graftlm.models import load_tokenizer

    text = " ".join(f"{row['prompt']} {row['completion']}" for row in rows_of("gsm8k"))
    ids = load_tokenizer("gemma-3-270m")(text)["input_ids"][: batch * length]
    rows = torch.tensor(ids).view(batch, length)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    model.train()

    objective = NextToken(graftlm.TrainConfig())

    def ours() -> None:
        made = Batch(rows, rows.clone(), None, None, rows.numel())
        train_step(model, [made], optimizer, parameters, 1.0, objective)

    def theirs() -> None:
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return model, theirs if side == "peft" else ours


def counted(step: Callable[[], Any]) -> int:
    """Floating-point operations of the products of a step."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from graftlm.planning.cost import BYTES, CALLS, Cost

    cost = Cost()

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            cost.add(func, args, kwargs or {}, result)
            return result

    with Counter():
        step()
    return sum(work for kind, work in cost.items() if kind not in (BYTES, CALLS))


def worker(arguments: argparse.Namespace) -> None:
    """One run; prints JSON."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from graftlm.system import fast_bfloat16, return_freed_memory

    return_freed_memory()
    _, step = prepare(arguments.worker, arguments.batch, arguments.length)
    step()
    times = []
    for _ in range(arguments.steps):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    events = [e for e in profiled.key_averages() if e.self_cpu_time_total]
    whole = sum(e.self_cpu_time_total for e in events)
    products = sum(e.self_cpu_time_total for e in events if is_product(e.key))
    flops = counted(step)
    wide = arguments.worker.endswith("float32") or not fast_bfloat16()
    print(
        json.dumps(
            {
                "step": statistics.median(times),
                "share": products / whole,
                "flops": flops,
                "floor": flops / rate(torch.float32 if wide else torch.bfloat16),
                "floor32": flops / rate(torch.float32),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    print(f"{'run':24} step ms  products  GFLOP  floor ms  step/floor  step/float32 floor")
    for run in RUNS:
        command = [sys.executable, __file__, "--worker", run, "--batch", str(arguments.batch)]
        command += ["--length", str(arguments.length), "--steps", str(arguments.steps)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout.splitlines()[-1])
        step, floor = found["step"], found["floor"]
        print(
            f"{run:24} {step * 1e3:7.0f} {found['share']:9.0%} {found['flops'] / 1e9:6.0f} "
            f"{floor * 1e3:9.0f} {step / floor:11.2f} {step / found['floor32']:19.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Linear cross-entropy against F.cross_entropy and a chunked version: time, memory, accuracy.

    python benchmarks/bench_cross_entropy.py [--model gemma-3-270m --data ROWS.jsonl] [--quick]

Two tables, as CSV on stdout:

- `shapes`: a random bfloat16 head that behaves like a trained one, forward + gradient for the
  hidden states, over N positions, vocabulary V and width D. `dense` stores the logits; `chunked`
  takes 64 positions at a time, so that it never holds more logits than that; each in float32 and
  bfloat16. Every run is a process of its own: `peak_mb` is what it added to its resident memory.
  `ceiling` is the time of the product H Wᵀ alone in PyTorch (bfloat16, and float32) over ours.
- `accuracy` (with --data): the head and the hidden states of a real model on real text; error
  against float64 of the loss and of the gradient, share of entries kept, probability dropped,
  positions computed in full, and the time over that of tolerance 0.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from graftlm.training.linear_cross_entropy import linear_cross_entropy

CHUNK = 64
REPEATS = 3
METHODS = ["graftlm", "dense-float32", "dense-bfloat16", "chunked-float32", "chunked-bfloat16"]


def problem(n: int, vocabulary: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states that point at one row each; about 1 % of p exceed 1e-6."""
    torch.manual_seed(0)
    weight = torch.empty(vocabulary, dim, dtype=torch.bfloat16)
    for part in weight.split(4096):  # no float32 copy to count
        part.copy_(torch.randn(part.shape))
    targets = torch.randint(0, vocabulary, (n,))
    hidden = weight[targets].float() * (18 / dim) + torch.randn(n, dim) * (1.5 / dim**0.5)
    return hidden, weight, targets


def dense(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    return F.cross_entropy(hidden.to(dtype) @ weight.to(dtype).T, targets, reduction="sum")


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient is made with each chunk, so that its logits can go."""
    head, total = weight.to(dtype), 0.0
    grads = []
    for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        leaf = h.detach().requires_grad_()
        loss = F.cross_entropy(leaf.to(dtype) @ head.T, t, reduction="sum")
        loss.backward()
        grads.append(leaf.grad)
        total += loss.item()
    hidden.grad = torch.cat(grads)
    return torch.tensor(total)


def step(method: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """Forward and the gradient for ``hidden``."""
    hidden = hidden.detach().requires_grad_()
    if method == "graftlm":
        linear_cross_entropy(hidden, weight, targets)[0].backward()
        return
    kind, dtype = method.split("-")
    if kind == "dense":
        dense(hidden, weight, targets, getattr(torch, dtype)).backward()
    else:
        chunked(hidden, weight, targets, getattr(torch, dtype))


def measure(run: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Median seconds, and the most resident memory added on the way in MB."""
    process = psutil.Process()
    before = peak = process.memory_info().rss
    running = True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    running = False
    watcher.join()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), (peak - before) / 1e6


def child(method: str, n: int, vocabulary: int, dim: int, repeats: int) -> None:
    """One cell of the table, in its own process; prints JSON."""
    hidden, weight, targets = problem(n, vocabulary, dim)
    if method.startswith("product"):
        dtype = getattr(torch, method.split("-")[1])
        h, rows = hidden.to(dtype), min(vocabulary, 32768)
        w = weight[:rows].to(dtype)
        seconds, peak = measure(lambda: h @ w.T, repeats)
        seconds *= vocabulary / rows
    else:
        seconds, peak = measure(lambda: step(method, hidden, weight, targets), repeats)
    print(json.dumps([seconds, peak]))


def cell(method: str, n: int, vocabulary: int, dim: int, repeats: int) -> tuple[float, float]:
    command = [sys.executable, __file__, "--child", method, n, vocabulary, dim, repeats]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return float("nan"), float("nan")  # out of memory
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def shapes(quick: bool, repeats: int) -> None:
    out = csv.writer(sys.stdout)
    names = [f"{m}_{unit}" for m in METHODS for unit in ("ms", "peak_mb")]
    out.writerow(["N", "V", "D", *names, "ceiling_bf16", "ceiling_f32"])
    grid = itertools.product([64, 512, 4096], [32_000, 128_256, 262_144], [640, 2048])
    for n, vocabulary, dim in [(512, 262_144, 640)] if quick else grid:
        row: list[float] = []
        for method in METHODS:
            # 4096 × 262,144 logits and their gradient would not fit
            if method.startswith("dense") and n * vocabulary > 2.2e8:
                row += [float("nan")] * 2
                continue
            seconds, peak = cell(method, n, vocabulary, dim, repeats)
            row += [seconds * 1e3, peak]
        floors = [cell(f"product-{t}", n, vocabulary, dim, repeats)[0] for t in DTYPES]
        ratios = [f"{floor * 1e3 / row[0]:.2f}" for floor in floors]
        out.writerow([n, vocabulary, dim, *(f"{x:.1f}" for x in row), *ratios])
        sys.stdout.flush()


DTYPES = ["bfloat16", "float32"]


def real_states(model_name: str, data: Path, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Final hidden states of real text, the head, and the next tokens."""
    import graftlm

    model, tokenizer = graftlm.load_model(model_name)
    head = model.get_output_embeddings().weight.detach()
    model = model.float()
    hidden, targets, found = [], [], 0
    with data.open(encoding="utf-8") as rows:
        for line in rows:
            text = " ".join(_strings(json.loads(line)))
            ids = tokenizer(text, return_tensors="pt").input_ids[:, :512]
            with torch.no_grad():
                states = model.model(ids).last_hidden_state[0]
            hidden.append(states[:-1])
            targets.append(ids[0, 1:])
            found += len(targets[-1])
            if found >= count:
                break
    return torch.cat(hidden)[:count], head.bfloat16(), torch.cat(targets)[:count]


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value
    return [text for child in children for text in _strings(child)]


def accuracy(model_name: str, data: Path) -> None:
    hidden, weight, targets = real_states(model_name, data, 512)
    truth = hidden.double().requires_grad_()
    exact, _ = linear_cross_entropy(truth, weight, targets, tolerance=0)
    exact.backward()
    wanted = truth.grad
    out = csv.writer(sys.stdout)
    names = ["kept", "dropped", "dense", "time"]
    out.writerow(["data", "method", "loss_error", "grad_error", *names])

    def report(name: str, loss: Tensor, grad: Tensor, *rest: object) -> None:
        loss_error = abs(loss.double() - exact) / exact
        grad_error = (grad.double() - wanted).norm() / wanted.norm()
        out.writerow([data.parent.name, name, f"{loss_error:.1e}", f"{grad_error:.1e}", *rest])

    for dtype in (torch.float32, torch.bfloat16):
        leaf = hidden.clone().requires_grad_()
        loss = chunked(leaf, weight, targets, dtype)
        report(f"chunked-{dtype}".replace("torch.", ""), loss, leaf.grad, 1, 0, "", "")
    for states, name in [(hidden, ""), (hidden.bfloat16(), " of bfloat16 states")]:
        exact_seconds = 0.0
        for tolerance in [0, 1e-8, 1e-7, 1e-6, 1e-5]:
            times = []
            for _ in range(REPEATS):
                leaf = states.clone().requires_grad_()
                start = time.perf_counter()
                loss, made = linear_cross_entropy(leaf, weight, targets, tolerance=tolerance)
                loss.backward()
                times.append(time.perf_counter() - start)
            exact_seconds = exact_seconds or statistics.median(times)
            ratio = f"{statistics.median(times) / exact_seconds:.2f}"
            kept, dropped = f"{made.kept_share:.4f}", f"{made.dropped_mass:.4f}"
            name_ = f"graftlm {tolerance:g}{name}"
            report(name_, loss, leaf.grad, kept, dropped, made.dense_positions, ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one shape only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--data", type=Path, help="JSONL rows for the accuracy table")
    options = parser.parse_args()
    if options.child:
        method, *numbers = options.child
        child(method, *(int(number) for number in numbers))
        return
    print(
        f"# {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    if options.data:
        accuracy(options.model, options.data)
    else:
        shapes(options.quick, options.repeats)


if __name__ == "__main__":
    main()

"""NF4 on a CPU: graftlm, bitsandbytes, torchao and dense PyTorch, alternating in one process.

    python benchmarks/bench_kernels.py [--quick] [--csv FILE] [--skip-decoding] [--skip-levels]

Prints four tables; `--csv` writes every row with machine and versions.

- operations: medians over repeats in which the contestants take turns, each a fresh result tensor.
  `of roof` is the share of what the machine can do at best: for conversions and for one row the
  bytes that must move, over the time, over the measured bandwidth of a copy; for products of more
  rows the operations, over the time, over the measured float32 rate (so it can exceed 1 where the
  arithmetic is not float32).
- accuracy: error of the products against float64, ours and dense float32; and 1 against 2 threads.
- levels: the same operations with GRAFTLM_CPU=avx2 and =scalar, each in a process of its own.
- decoding: greedy tokens/s of a whole model in NF4.

bitsandbytes runs as `Linear4bit` with double quantisation, computing in float32 and in bfloat16. On
a CPU with AVX512-BF16 it repacks its weights for inference and multiplies in bfloat16 either way;
`bnb plain` is what it does on all other CPUs. `over bnb`: the best of them over graftlm in float32.
A freed block goes back to the allocator, not to the system, for all of them: else every large
result is paid for by page faults rather than by the kernel.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPES = {  # (out_features, in_features)
    "llama-7b mlp": (4096, 11008),
    "gemma-270m q": (1024, 640),
    "gemma-270m up": (2048, 640),
    "gemma-270m down": (640, 2048),
    "llama-1b q": (2048, 2048),
    "llama-1b up": (8192, 2048),
    "llama-1b down": (2048, 8192),
}
ROWS = (1, 8, 32, 512)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**31), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
Run = Callable[[], object]


def alternate(runs: dict[str, Run], seconds: float = 2.0, least: int = 5) -> dict[str, float]:
    """Median seconds of each, taking turns until each has had its share of the time."""
    for run in runs.values():
        run()
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    names, start, shuffle = list(runs), time.perf_counter(), random.Random(0).shuffle
    while len(taken[names[0]]) < least or time.perf_counter() - start < seconds:
        for name in names:
            begin = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - begin)
        shuffle(names)  # nobody always finds the caches as the same neighbour left them
        if len(taken[names[0]]) >= 400:
            break
    return {name: statistics.median(times) for name, times in taken.items()}


def copy_bandwidth(numel: int) -> float:
    """Bytes per second, read and written, of copying a float32 tensor of this size."""
    a, b = torch.randn(numel), torch.empty(numel)
    return 8 * numel / alternate({"copy": lambda: b.copy_(a)}, 1.0)["copy"]


def gemm_rate() -> float:
    """Floating-point operations per second of a large float32 product."""
    a = torch.randn(2048, 2048)
    return float(2 * 2048**3 / alternate({"gemm": lambda: a @ a}, 1.0)["gemm"])


def bitsandbytes_layer(w: Tensor, dtype: torch.dtype) -> nn.Module:
    import bitsandbytes as bnb

    out_features, in_features = w.shape
    layer = bnb.nn.Linear4bit(
        in_features, out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
    )
    layer.weight = bnb.nn.Params4bit(w.clone(), requires_grad=False, quant_type="nf4")
    return layer.to("cpu")


def torchao_layer(w: Tensor) -> Callable[[Tensor], Tensor] | None:
    """torchao's NF4 product, where torchao is installed and takes this shape."""
    try:
        from torchao.dtypes.nf4tensor import linear_nf4, to_nf4

        stored = to_nf4(w)
        linear_nf4(torch.zeros(1, w.shape[1]), stored)
    except (ImportError, AssertionError, RuntimeError):
        return None
    return lambda x: linear_nf4(x, stored)


def operations(shapes: dict[str, tuple[int, int]], peers: bool = True) -> Iterator[dict[str, Any]]:
    """A row for each operation on each shape."""
    gemm = gemm_rate()
    print(f"# float32 GEMM {gemm / 1e9:.0f} GFLOP/s", file=sys.stderr)
    for name, shape in shapes.items():
        w = torch.randn(shape) * 0.02
        yield from conversions(name, w, peers)
        for rows in ROWS:
            yield product(name, w, rows, gemm, peers, backward=False)
        yield product(name, w, ROWS[-1], gemm, peers, backward=True)


def conversions(name: str, w: Tensor, peers: bool) -> Iterator[dict[str, Any]]:
    import bitsandbytes.functional as bnb

    from graftlm.kernels import ops

    bandwidth, stored = copy_bandwidth(w.numel()), w.numel() * 4.127 / 8
    w4 = ops.quantize(w)
    packed, state = bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    assert torch.equal(packed.flatten(), w4.codes)
    quantise: dict[str, Run] = {"graftlm": lambda: ops.quantize(w)}
    restore: dict[str, Run] = {"graftlm": lambda: ops.dequantize(w4, torch.float32)}
    if peers:
        quantise["bnb float32"] = lambda: bnb.quantize_4bit(
            w, quant_type="nf4", compress_statistics=True
        )
        restore["bnb float32"] = lambda: bnb.dequantize_4bit(packed, state)
    moved = 4 * w.numel() + stored
    for operation, runs in (("quantize", quantise), ("dequantize", restore)):
        times = alternate(runs)
        yield row(name, w, operation, 0, times, moved / times["graftlm"] / bandwidth)


def product(
    name: str, w: Tensor, rows: int, gemm: float, peers: bool, backward: bool
) -> dict[str, Any]:
    from graftlm.kernels import ops
    from graftlm.system import fast_bfloat16

    out_features, in_features = w.shape
    w4 = ops.quantize(w)
    x = torch.randn(rows, in_features, requires_grad=backward)
    dy = torch.randn(rows, out_features)
    contestants: dict[str, Callable[[Tensor], Tensor]] = {
        "graftlm": lambda x: ops.linear(x, w4, compute="float32"),
        "dense": lambda x: F.linear(x, w),
    }
    if peers:
        contestants["graftlm bfloat16x3"] = lambda x: ops.linear(x, w4, compute="bfloat16x3")
        contestants["graftlm bfloat16"] = lambda x: ops.linear(x.bfloat16(), w4)
        # Without its instructions PyTorch takes minutes for many rows in bfloat16: no contestant.
        quick = rows <= 32 or fast_bfloat16()
        for dtype in ("float32", "bfloat16") if quick else ("float32",):
            layer = bitsandbytes_layer(w, getattr(torch, dtype))
            contestants[f"bnb {dtype}"] = layer.train(backward)
        plain = bitsandbytes_layer(w, torch.float32)
        plain.support_avx512bf16_for_cpu = False
        contestants["bnb plain"] = plain.train(backward)
        other = torchao_layer(w)
        if other is not None:
            contestants["torchao"] = other

    def call(function: Callable[[Tensor], Tensor]) -> Run:
        def run() -> None:
            if backward:
                x.grad = None
                y = function(x)
                y.backward(dy.to(y.dtype))
            else:
                with torch.no_grad():
                    function(x)

        return run

    times = alternate({key: call(function) for key, function in contestants.items()})
    operation = f"linear {rows}" + (" fwd+bwd" if backward else "")
    if rows == 1:
        needed = w.numel() * 4.127 / 8 / copy_bandwidth(w.numel())
    else:
        needed = (2 if backward else 1) * 2 * rows * w.numel() / gemm
    return row(name, w, operation, rows, times, needed / times["graftlm"])


def row(
    name: str, w: Tensor, operation: str, rows: int, times: dict[str, float], of_roof: float
) -> dict[str, Any]:
    ours = times["graftlm"]
    best_bnb = min((t for key, t in times.items() if key.startswith("bnb")), default=float("nan"))
    dense = times.get("dense", float("nan"))
    return {
        "weight": name,
        "shape": "x".join(map(str, w.shape)),
        "operation": operation,
        "rows": rows,
        "of_roof": of_roof,
        "over_bnb": best_bnb / ours,
        "over_bnb_plain": times.get("bnb plain", float("nan")) / ours,
        "over_dense": dense / ours,
    } | {f"{key}_ms": 1e3 * t for key, t in times.items()}


def accuracy(shapes: dict[str, tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Error against float64 on the same restored weight, and equality over thread counts."""
    from graftlm.kernels import ops

    threads = torch.get_num_threads()
    for name, shape in shapes.items():
        w4 = ops.quantize(torch.randn(shape) * 0.02)
        w = ops.dequantize(w4, torch.float32)
        for rows in ROWS:
            x = torch.randn(rows, shape[1])
            truth = x.double() @ w.double().T
            results = []
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(ops.linear(x, w4, compute="float32"))
            torch.set_num_threads(threads)
            errors = [float((y - truth).norm() / truth.norm()) for y in (results[0], x @ w.T)]
            yield {
                "weight": name,
                "rows": rows,
                "graftlm_error": errors[0],
                "dense_error": errors[1],
                "threads_equal": torch.equal(*results),
            }


def decoding(tokens: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Greedy tokens/s of Gemma-3-270M in NF4: the same prompt, the same number of new tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    import graftlm
    from graftlm.models import resolve

    path = resolve("gemma-3-270m").path
    models: dict[str, Any] = {"graftlm": graftlm.load_model("gemma-3-270m", quantize="nf4")[0]}
    for name, dtype in (
        ("bnb float32", torch.float32),
        ("bnb bfloat16", torch.bfloat16),
        ("bnb plain", torch.float32),
    ):
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        models[name] = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, device_map="cpu", quantization_config=settings
        )
    for layer in models["bnb plain"].modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    models["dense"] = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(path)("The city of Paris", return_tensors="pt").input_ids
    counts = {"max_new_tokens": tokens, "do_sample": False}

    def call(model: Any) -> Run:
        model.eval()
        model.generation_config.eos_token_id = None  # all write the same number of tokens
        return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **counts)

    times = alternate({name: call(model) for name, model in models.items()}, 0, repeats)
    for name, seconds in times.items():
        rate = tokens / seconds
        yield {"model": name, "tokens_per_second": rate, "graftlm_over": seconds / times["graftlm"]}


REQUIRED = {  # operation: (over bitsandbytes, over dense), on the first shape
    "quantize": (30, None),
    "dequantize": (3, None),
    "linear 1": (20, 3),
    "linear 32": (2.5, 1),
    "linear 512 fwd+bwd": (None, 1 / 1.06),
}


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table on stdout; a missing cell is a dash."""
    columns = list(dict.fromkeys(key for found in rows for key in found))
    cells = [columns] + [[_cell(found.get(column)) for column in columns] for found in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    print(f"\n{title}")
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    sys.stdout.flush()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3g}"
    return "-" if value is None else str(value)


def levels(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The operations at the lower instruction levels, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    for level in ("avx512", "avx2", "scalar"):
        command = [sys.executable, __file__, "--child", *(["--quick"] if options.quick else [])]
        done = subprocess.run(
            command,
            env={**os.environ, "GRAFTLM_CPU": level},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rows += [{"level": level} | json.loads(line) for line in done.stdout.splitlines()]
    return rows


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for name in SHAPES:
        for made in (r for r in rows if r["weight"] == name and r["operation"] in REQUIRED):
            bnb, dense = REQUIRED[made["operation"]]
            found.append(
                {
                    "weight": name,
                    "operation": made["operation"],
                    "over bnb": made["over_bnb"],
                    "over bnb plain": made["over_bnb_plain"],
                    "wanted": bnb,
                    "over dense": made["over_dense"],
                    "wanted ": dense,
                    "met": (bnb is None or made["over_bnb"] >= bnb)
                    and (dense is None or made["over_dense"] >= dense),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first shape only")
    parser.add_argument("--csv", type=Path, help="where to write every row")
    parser.add_argument("--skip-decoding", action="store_true")
    parser.add_argument("--skip-levels", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if any(name not in os.environ for name in ALLOCATOR):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**ALLOCATOR, **os.environ})
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    shapes = dict(list(SHAPES.items())[: 1 if options.quick or options.child else None])
    if options.child:
        for found in operations(shapes, peers=False):
            print(json.dumps(found))
        return
    import bitsandbytes

    machine = f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
    machine += f"bitsandbytes {bitsandbytes.__version__}"
    print(f"# {machine}")
    tables = {"operations": list(operations(shapes)), "accuracy": list(accuracy(shapes))}
    for title, rows in tables.items():
        show(title, rows)
    show("what was wanted", verdicts(tables["operations"]))
    if not options.skip_levels:
        tables["levels"] = levels(options)
        show("levels, on the first shape", tables["levels"])
    if not options.skip_decoding:
        tables["decoding"] = list(decoding(tokens=64, repeats=3))
        show("decoding, gemma-3-270m in NF4", tables["decoding"])
    if options.csv:
        everything = [
            {"machine": machine, "table": t} | r for t, rows in tables.items() for r in rows
        ]
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            columns = list(dict.fromkeys(key for found in everything for key in found))
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(everything)


def cpu_name() -> str:
    """The model of the CPU, where the system says it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()

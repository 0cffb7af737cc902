"""Compiles every Triton kernel for cards that are not here, and prints what each one uses.

    python benchmarks/kernel_tables.py            Markdown, as in docs/gpu.md
    python benchmarks/kernel_tables.py --json     one JSON object, for the test

No card is needed: the launchers run on tensors without memory, and each launch is compiled, with
its own types and sizes, instead of started. Registers, spills and shared memory are those of the
compiled object. The bytes and operations are those that the work needs at least; divided by a
card's data sheet they give the shortest time in which it could be done. No time is measured here.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # the tests' process may have it

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from graftlm.frozen.weight import WeightSettings
from graftlm.kernels.products import weight_arguments
from graftlm.kernels.triton import (
    cross_entropy,
    factor_gradient,
    gated_unit,
    low_rank,
    nf4_dequantize,
    nf4_few_rows,
    nf4_quantize,
    rms_norm,
    rotary,
)
from graftlm.system.cards import CARDS

TARGETS = {
    "sm_75": GPUTarget("cuda", 75, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {
    "sm_75": 64 << 10,
    "sm_80": 163 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "gfx942": 64 << 10,
}
"""Bytes of shared memory that a program may have."""
TOKENS, WIDTH, INNER, HEAD, RANK, VOCABULARY = 2048, 4096, 14336, 128, 16, 128256
"""A layer of Llama-3.1-8B and a micro-batch."""

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int64: "i64",
}


class Launch(NamedTuple):
    """One launch: the kernel, its arguments by name, and the options of the compiler."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]


class Work(NamedTuple):
    """A call of a launcher, and what it has to move and compute at least."""

    call: Callable[[], Any]
    nbytes: float
    flops: float


def launches(call: Callable[[], Any]) -> list[Launch]:
    """The launches that ``call`` would make."""
    found: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [parameter.name for parameter in self.params]
        known = dict(zip(names, args, strict=False))
        options = {name: value for name, value in kwargs.items() if name not in names}
        known |= {name: value for name, value in kwargs.items() if name in names}
        found.append(Launch(self, known, options))

    original = JITFunction.run
    JITFunction.run = record
    try:
        call()
    finally:
        JITFunction.run = original
    return found


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """The compiled kernel, specialised as Triton does at a launch."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=launch.options)


def resources(binary: Any, target: GPUTarget) -> dict[str, int]:
    """Registers of a thread, bytes it spills, and bytes of shared memory of a program."""
    shared = int(binary.metadata.shared)
    if target.backend == "hip":
        text = binary.asm["amdgcn"]
        numbers = {
            name: int(match[1])
            for name in ("vgpr_count", "vgpr_spill_count")
            if (match := re.search(rf"\.{name}:\s*(\d+)", text)) is not None
        }
        return {
            "registers": numbers["vgpr_count"],
            "spills": 4 * numbers["vgpr_spill_count"],
            "shared": shared,
        }
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return {
        "registers": found["REG"],
        "spills": found["STACK"] + found["LOCAL"],
        "shared": shared,
    }


def works(dtype: torch.dtype) -> dict[str, Work]:
    """The work of each kernel, at the sizes of a layer of Llama-3.1-8B."""
    empty = functools.partial(torch.empty, device="meta")
    x, wide = empty(TOKENS, WIDTH, dtype=dtype), empty(TOKENS, INNER, dtype=dtype)
    dense = empty(INNER, WIDTH, dtype=dtype)
    frozen = FrozenNF4.empty((INNER, WIDTH), dtype, WeightSettings(), "meta")
    stored = weight_arguments(frozen.stored)
    maxima = empty(INNER * WIDTH // 64)
    norm, rstd = empty(WIDTH, dtype=dtype), empty(TOKENS)
    A, B = empty(RANK, WIDTH), empty(INNER, RANK)
    thin = empty(TOKENS, RANK, dtype=dtype)
    head = empty(VOCABULARY, WIDTH, dtype=dtype)
    targets = empty(TOKENS, dtype=torch.int64)
    few = x[:8]
    heads = x.view(1, TOKENS, WIDTH // HEAD, HEAD).transpose(1, 2)
    angles = empty(1, TOKENS, HEAD, dtype=dtype)
    loss = (head, None, None, None, targets, 1.0, 30.0, 0.0, 0.0, 0.05, True)
    size, matrix = dtype.itemsize, frozen.nbytes
    logits = 2.0 * TOKENS * VOCABULARY * WIDTH
    return {
        "NF4: quantise": Work(
            lambda: nf4_quantize.quantize(dense, 64), dense.nbytes + dense.numel() / 2, 0
        ),
        "NF4: double quantisation": Work(lambda: _without_mean(maxima), 5.0 * maxima.numel(), 0),
        "NF4: dequantise": Work(
            lambda: nf4_dequantize.dequantize(*stored, dtype), matrix + dense.nbytes, 0
        ),
        "NF4: product of 1 row": Work(
            lambda: nf4_few_rows.few_rows(x[:1], *stored, None), matrix, 2.0 * dense.numel()
        ),
        "NF4: product of 8 rows": Work(
            lambda: nf4_few_rows.few_rows(few, *stored, None), matrix, 16.0 * dense.numel()
        ),
        "LoRA: u = x Aᵀ": Work(
            lambda: low_rank.down(x, A), x.nbytes + A.nbytes, 2.0 * x.numel() * RANK
        ),
        "LoRA: y += s u Bᵀ": Work(
            lambda: low_rank.add_(wide, thin, B, 2.0), 2 * wide.nbytes, 2.0 * wide.numel() * RANK
        ),
        "LoRA: gradient of a factor": Work(
            lambda: factor_gradient.factor_gradient(thin, wide, 2.0, True, "auto"),
            wide.nbytes + thin.nbytes,
            2.0 * wide.numel() * RANK,
        ),
        "RMS norm": Work(lambda: rms_norm.rms_norm(x, norm, 0.0, 1e-6), 2 * x.nbytes, 0),
        "RMS norm, backward": Work(
            lambda: rms_norm.rms_norm_backward(x, x, norm, rstd, 0.0), 3 * x.nbytes, 0
        ),
        "gated unit": Work(lambda: gated_unit.gated_unit(wide, wide, 1.0, 0.0), 3 * wide.nbytes, 0),
        "gated unit, backward": Work(
            lambda: gated_unit.gated_unit_backward(wide, wide, wide, 1.0, 0.0), 5 * wide.nbytes, 0
        ),
        "rotary embedding": Work(
            lambda: rotary.rotary(heads, angles, angles, False), 2 * x.nbytes + 2 * angles.nbytes, 0
        ),
        "rotary embedding, backward": Work(
            lambda: rotary.rotary(heads, angles, angles, True), 2 * x.nbytes + 2 * angles.nbytes, 0
        ),
        "loss: logits of a tile": Work(
            lambda: cross_entropy.cross_entropy(x, *loss),
            head.nbytes + 4.0 * TOKENS * VOCABULARY,
            logits,
        ),
        "loss: softmax of a tile": Work(
            lambda: cross_entropy.cross_entropy(x, *loss), 12.0 * TOKENS * VOCABULARY, 0
        ),
        "loss: gradient of a tile": Work(
            lambda: cross_entropy.cross_entropy(x, *loss),
            head.nbytes + (4.0 + size) * TOKENS * VOCABULARY,
            logits,
        ),
    }


def _without_mean(maxima: Tensor) -> None:
    """Double quantisation of maxima without values: the check of their mean reads one."""
    real = nf4_quantize.mean_of
    nf4_quantize.mean_of = lambda absmax: absmax.new_empty(())
    try:
        nf4_quantize.double_quantize(maxima)
    finally:
        nf4_quantize.mean_of = real


_OF_THE_LOSS = ("loss: logits of a tile", "loss: softmax of a tile", "loss: gradient of a tile")


def rows(targets: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each kernel and target: what the compiled object uses."""
    for target in targets:
        dtype = torch.float16 if target == "sm_75" else torch.bfloat16
        for name, work in works(dtype).items():
            made = launches(work.call)
            launch = made[_OF_THE_LOSS.index(name)] if name in _OF_THE_LOSS else made[0]
            binary = compiled(launch, TARGETS[target])
            yield {
                "kernel": name,
                "function": launch.kernel.fn.__name__,
                "file": launch.kernel.fn.__module__.rpartition(".")[2],
                "target": target,
                "dtype": str(dtype).removeprefix("torch."),
                "warps": binary.metadata.num_warps,
                **resources(binary, TARGETS[target]),
                "shared_limit": SHARED_LIMIT[target],
                "bytes": work.nbytes,
                "flops": work.flops,
            }


def markdown(found: list[dict[str, Any]]) -> str:
    """Two tables: what each compiled kernel uses, and the roofs of cards."""
    targets = list(dict.fromkeys(row["target"] for row in found))
    kernels = list(dict.fromkeys(row["kernel"] for row in found))
    by = {(row["kernel"], row["target"]): row for row in found}
    lines = [
        "Registers a thread / spilled bytes a thread / shared KiB a program:",
        "",
        f"| kernel | {' | '.join(targets)} |",
        f"|---|{'---|' * len(targets)}",
    ]
    for kernel in kernels:
        cells = [
            f"{row['registers']} / {row['spills']} / {row['shared'] / 1024:.0f}"
            for row in (by[kernel, target] for target in targets)
        ]
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    names = [card.name for card in CARDS]
    lines += [
        "",
        "Least bytes and operations, and the shortest time by the data sheet (µs; c: bound by "
        "arithmetic, else by memory):",
        "",
        f"| kernel | MB | GFLOP | {' | '.join(names)} |",
        f"|---|---|---|{'---|' * len(names)}",
    ]
    for kernel in kernels:
        row = by[kernel, targets[-1]]
        cells = []
        for card in CARDS:
            memory, arithmetic = row["bytes"] / card.bandwidth, row["flops"] / card.narrow
            cells.append(f"{1e6 * max(memory, arithmetic):.0f}{' c' * (arithmetic > memory)}")
        lines.append(
            f"| {kernel} | {row['bytes'] / 1e6:.1f} | {row['flops'] / 1e9:.1f} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--targets", default=",".join(TARGETS))
    asked = parser.parse_args()
    found = list(rows(asked.targets.split(",")))
    print(json.dumps(found) if asked.json else markdown(found))


if __name__ == "__main__":
    main()

"""What runs the operators here, and whether it is right: for `graftlm doctor`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graftlm.kernels import native, nf4, ops, reference

__all__ = ["selfcheck", "status"]

SHAPE = (1024, 2048)
ROWS = 256


def status() -> dict[str, str]:
    """What runs, why, and the arithmetic of products by the type of their input."""
    module = native.extension()
    if module is None:
        return {"runs": "PyTorch reference", "because": native.absence()}
    products = {
        "amx bf16": "bfloat16, in AMX tiles",
        "int16": "whole numbers of 16 bits",
        "float32": "float32",
    }
    return {
        "runs": "native kernels",
        "level": module.level(),
        "threads": {
            "openmp": "the OpenMP pool of PyTorch",
            "threads": "started for each call: no OpenMP runtime found",
            "serial": "one: this is a forked process",
        }[module.thread_runtime()],
        "bfloat16 products": products[module.rounded_product()],
    }


def selfcheck() -> list[dict[str, Any]]:
    """Run every operator and its reference on the same data; compare, and time both.

    Returns:
        A row an operator: ``check``, ``result`` (``ok`` or ``WRONG``), the error where the two need
        not be equal, and milliseconds for both.
    """
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(SHAPE, generator=generator)
    x = torch.randn(ROWS, SHAPE[1], generator=generator)
    dy = torch.randn(ROWS, SHAPE[0], generator=generator)
    w4 = nf4.quantize(w)
    rows = [
        _row("quantize", lambda: ops.quantize(w).codes, lambda: nf4.quantize(w).codes, 0.0),
        _row("dequantize", lambda: ops.dequantize(w4), lambda: nf4.dequantize(w4), 0.0),
    ]
    for name, factor, compute, bound in _PRODUCTS:
        few = factor(x)

        def run(few: Tensor = few, compute: ops.Compute = compute) -> Tensor:
            return ops.linear(few, w4, compute=compute)

        def expected(few: Tensor = few) -> Tensor:
            return reference.linear(few, w4)

        rows.append(_row(name, run, expected, bound))
    weight = (w4.codes, w4.absmax, w4.nested_absmax, w4.offset, list(SHAPE), w4.block_size)
    backward = torch.ops.graftlm.nf4_linear_backward
    rows.append(
        _row(
            "linear backward",
            lambda: backward(dy, *weight, "float32"),
            lambda: reference.linear_backward(dy, w4),
            1e-5,
        )
    )
    return rows


_PRODUCTS: tuple[tuple[str, Callable[[Tensor], Tensor], ops.Compute, float], ...] = (
    ("linear 1 row", lambda x: x[:1], "float32", 1e-5),
    (f"linear {ROWS} rows", lambda x: x, "float32", 1e-5),
    (f"linear {ROWS} rows bfloat16x3", lambda x: x, "bfloat16x3", 1e-4),
    (f"linear {ROWS} rows bfloat16", lambda x: x.bfloat16(), "bfloat16", 2e-2),
)


def _row(
    name: str, run: Callable[[], Tensor], expected: Callable[[], Tensor], bound: float
) -> dict[str, Any]:
    ours, seconds = _timed(run)
    theirs, reference_seconds = _timed(expected)
    if bound == 0:
        error, right = 0.0, torch.equal(ours, theirs)
    else:
        difference = (ours.double() - theirs.double()).norm()
        error = float(difference / theirs.double().norm())
        right = error <= bound
    return {
        "check": name,
        "result": "ok" if right else "WRONG",
        "relative_error": float(f"{error:.1e}"),
        "ms": round(1e3 * seconds, 2),
        "reference_ms": round(1e3 * reference_seconds, 2),
    }


def _timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    run()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return result, best

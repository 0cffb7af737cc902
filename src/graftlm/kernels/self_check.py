"""Checks the kernels of this machine against their references, for `graftlm doctor`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graftlm._compat.tracing import tree_map_only
from graftlm.kernels.operator import Case, Operator, operators

__all__ = ["selfcheck"]


def selfcheck(device: str | torch.device = "cpu") -> list[dict[str, Any]]:
    """Run every operator and its reference on the same arguments; compare them, and time both.

    Args:
        device: besides the CPU, also check this device, where it has a kernel.

    Returns:
        A row a case: ``operator``, ``case``, ``device``, ``runs`` (what ran it), ``result`` (``ok``
        or ``WRONG``), the greatest relative error of its results, and milliseconds for both.
    """
    rows = []
    with torch.no_grad():
        for operator in operators().values():
            cases = operator.cases()
            for one in dict.fromkeys(("cpu", str(device))):
                rows += _checked(operator, cases, one)
    return rows


def _checked(operator: Operator, cases: Sequence[Case], device: str) -> list[dict[str, Any]]:
    rows = []
    for case in cases:
        arguments = tree_map_only(Tensor, lambda t: t.to(device), case.arguments)
        if device != "cpu" and not operator.has_kernel(*arguments):
            continue
        rows.append(_row(operator, case, device, arguments))
    return rows


def _row(operator: Operator, case: Case, device: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    runs = operator.runs(*arguments)
    ours, seconds = _timed(lambda: operator(*arguments))
    theirs, reference_seconds = _timed(lambda: operator.reference(*arguments))
    error = max(_errors(_compared(ours, case), _compared(theirs, case)), default=0.0)
    return {
        "operator": operator.name,
        "case": case.label,
        "device": device,
        "runs": runs,
        "result": "ok" if error <= case.bound else "WRONG",
        "relative_error": float(f"{error:.1e}"),
        "ms": round(1e3 * seconds, 2),
        "reference_ms": round(1e3 * reference_seconds, 2),
    }


def _compared(results: Any, case: Case) -> list[Tensor]:
    """The results that the case compares."""
    if isinstance(results, Tensor):
        return [results]
    chosen = range(len(results)) if case.outputs is None else case.outputs
    return [results[index] for index in chosen]


def _errors(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[float]:
    """The relative error of each result; infinite where shapes, types or finiteness differ."""
    errors = []
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            errors.append(float("inf"))
        elif torch.equal(a, b):
            errors.append(0.0)
        else:
            error = float((a.double() - b.double()).norm() / b.double().norm())
            errors.append(error if error == error else float("inf"))
    return errors


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the shortest of three times after a first call."""
    run()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        result = run()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - start)
    return result, best

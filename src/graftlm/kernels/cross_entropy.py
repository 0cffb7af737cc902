"""Linear cross-entropy as an operator: losses of positions, and gradients for hidden states.

`graftlm.training.linear_cross_entropy` states the equations and makes it differentiable. The
reference is `graftlm.kernels.reference.cross_entropy`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import RequestError
from graftlm.kernels.mean_row import mean_row
from graftlm.kernels.operator import Case, Operator, Timing
from graftlm.kernels.products import draw
from graftlm.kernels.reference import cross_entropy as reference
from graftlm.kernels.reference.cross_entropy import Gradients, Head, Walk

__all__ = ["Gradients", "Head", "Walk", "backward", "check", "forward", "walk_of"]

MAX_DROPPED = 0.05
"""If the gradient of a position leaves out more probability in total, it is computed exactly."""


def check(hidden: Tensor, head: Head, targets: Tensor, smoothing: float, tolerance: float) -> None:
    """Raise one error that names every argument that does not fit the others."""
    problems = _shape_problems(hidden, head, targets)
    fits = targets.dtype == torch.int64 and targets.shape == hidden.shape[:1]
    # Elsewhere the answer would wait for all work before it; rows are checked before a run.
    if fits and targets.is_cpu and targets.numel():
        low, high = torch.stack(torch.aminmax(targets)).tolist()
        if low < 0 or high >= head.weight.shape[0]:
            problems.append(
                f"targets span [{low}, {high}], outside the vocabulary of {head.weight.shape[0]}: "
                "pass supervised positions only"
            )
    if head.softcap is not None and not head.softcap > 0:
        problems.append(f"softcap must be positive, got {head.softcap}")
    if not 0 <= smoothing < 1:
        problems.append(f"label_smoothing must lie in [0, 1), got {smoothing}")
    if not 0 <= tolerance < 1:
        problems.append(f"tolerance must lie in [0, 1), got {tolerance}")
    if problems:
        raise RequestError("linear_cross_entropy: " + "; ".join(problems))


def _shape_problems(hidden: Tensor, head: Head, targets: Tensor) -> list[str]:
    problems = []
    if hidden.ndim != 2 or head.weight.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
        problems.append(
            f"expected hidden (N, D) and weight (V, D), got {tuple(hidden.shape)} and "
            f"{tuple(head.weight.shape)}"
        )
    if targets.dtype != torch.int64 or targets.shape != hidden.shape[:1]:
        problems.append(
            f"expected one int64 target for each of the {hidden.shape[0]} positions, got "
            f"{tuple(targets.shape)} {targets.dtype}"
        )
    scales, rows = head.row_scale, head.weight.shape[:1]
    if scales is not None and (scales.shape != rows or scales.dtype != torch.float32):
        problems.append(
            f"expected row_scale ({head.weight.shape[0]},) float32, got {tuple(scales.shape)} "
            f"{scales.dtype}"
        )
    if (head.weight.dtype == torch.int8) != (scales is not None):
        problems.append("a row_scale belongs to an int8 weight, and to no other")
    if head.bias is not None and head.bias.shape != rows:
        problems.append(f"expected bias ({head.weight.shape[0]},), got {tuple(head.bias.shape)}")
    return problems


def forward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    label_smoothing: float = 0.0,
    tolerance: float = 1e-6,
    want_grad: bool = True,
) -> Walk:
    """Losses of all positions and, if requested, their gradients with respect to ``hidden``.

    Args:
        hidden: (N, D).
        head: the output layer.
        targets: (N,) int64.
        label_smoothing: share of the target spread evenly over the vocabulary.
        tolerance: entries of the softmax up to this may be left out of the gradient. Their total is
            then multiplied by the mean row of the weight. It is an upper bound: the reference,
            which 0 selects, uses all entries.
        want_grad: also compute the gradient.

    Raises:
        RequestError: shapes or types do not fit.
    """
    return walk_of(hidden, head, targets, label_smoothing, tolerance, MAX_DROPPED, want_grad)


def walk_of(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    label_smoothing: float,
    tolerance: float,
    max_dropped: float,
    want_grad: bool,
    mean: Tensor | None = None,
) -> Walk:
    """The same as `forward`; ``mean`` is the mean row of the weight, if already known."""
    arguments = (targets, head.scale, head.softcap or 0.0, label_smoothing, tolerance)
    rest = (*arguments, max_dropped, want_grad)
    weight = (head.weight, head.row_scale, head.bias)
    # Only the CPU's kernel leaves entries out, for which the mean row stands.
    here = hidden.device.type == "cpu"  # a fake tensor of a GPU says that it `is_cpu`
    wants_mean = mean is None and here and bool(want_grad or label_smoothing)
    if wants_mean and _cross_entropy.has_kernel(hidden, *weight, None, *rest):
        mean = mean_row(head.weight, head.row_scale)
    loss, lse, grad, dropped, counts = _cross_entropy(hidden, *weight, mean, *rest)
    return Walk(loss, lse, grad if want_grad else None, dropped, counts)


def backward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    lse: Tensor,
    label_smoothing: float,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Exact gradients of the summed loss for (hidden, weight, bias), by a second walk."""
    return reference.backward(hidden, head, targets, lse, label_smoothing, wanted)


def _check(
    hidden: Tensor,
    weight: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    targets: Tensor,
    *_: Any,
) -> None:
    """The checks that need no values; `check` also reads the targets."""
    problems = _shape_problems(hidden, Head(weight, bias, row_scale=row_scale), targets)
    if mean is not None and (mean.shape != weight.shape[1:] or mean.dtype != torch.float32):
        problems.append(f"expected mean_row ({weight.shape[1]},) float32, got {tuple(mean.shape)}")
    if problems:
        raise RequestError("cross_entropy: " + "; ".join(problems))


def _reference(
    hidden: Tensor,
    weight: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float,
    label_smoothing: float,
    tolerance: float,
    max_dropped: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    head = Head(weight, bias, softcap or None, scale, row_scale)
    walk = reference.forward(hidden, head, targets, label_smoothing, want_grad)
    grad = walk.loss.new_empty(0) if walk.grad_hidden is None else walk.grad_hidden
    return walk.loss, walk.lse, grad, walk.dropped, walk.counts


def _fake(
    hidden: Tensor, weight: Tensor, row_scale: Any, bias: Any, mean: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = reference.compute_dtype(hidden)
    loss, lse, dropped = (hidden.new_empty(hidden.shape[0], dtype=dtype) for _ in range(3))
    grad = hidden.new_empty(hidden.shape if rest[-1] else 0, dtype=dtype)
    return loss, lse, grad, dropped, hidden.new_empty(2, dtype=torch.int64)


def _flops(hidden: Tensor, weight: Tensor, *_: Any) -> int:
    """The logits; the sparse gradient next to them is small."""
    return 2 * hidden.shape[0] * weight.numel()


def _workspace(hidden: Tensor, weight: Tensor, *rest: Any) -> int:
    """A tile of logits, its rows of the weight, and gradients that are added up."""
    softcap, want_grad = rest[5], rest[-1]
    positions, dim = hidden.shape
    rows = min(reference.tile_rows(positions), weight.shape[0])
    dtype = reference.compute_dtype(hidden)
    numbers = positions * rows * (3 if softcap else 1)
    numbers += 0 if weight.dtype == dtype else rows * dim
    numbers += 0 if hidden.dtype == dtype else positions * dim
    numbers += 2 * positions * dim if want_grad else 0
    return numbers * dtype.itemsize


def _arguments(
    dtype: torch.dtype, rows: int, vocabulary: int, dim: int, tolerance: float
) -> tuple[Any, ...]:
    """A head whose logits vary as in a trained model; flat logits would all be kept."""
    weight = (draw(vocabulary, dim) / dim**0.5).to(dtype)
    hidden = draw(rows, dim, seed=1, dtype=dtype) * _SPREAD
    targets = torch.arange(rows) * 7 % vocabulary
    mean = weight.float().mean(0)
    return hidden, weight, None, None, mean, targets, 1.0, 0.0, 0.0, tolerance, MAX_DROPPED, True


_SPREAD = 8.0
"""Standard deviation of these logits."""


def _cases() -> list[Case]:
    loss_and_gradient = (0, 1, 2)  # the other results depend on the kernel
    hidden, weight, *_ = plain = _arguments(torch.float32, 70, 5000, 64, 1e-6)
    codes = (30 * weight).clamp(-127, 127).to(torch.int8)
    scale = draw(5000, seed=2).abs() / 4
    mean = (codes * scale[:, None]).mean(0)
    in_8_bits = (hidden, codes, scale, None, mean, *plain[5:])
    return [
        Case("", plain, 2e-3, loss_and_gradient),
        Case("bfloat16", _arguments(torch.bfloat16, 70, 5000, 64, 1e-6), 2e-2, loss_and_gradient),
        Case("int8", in_8_bits, 2e-3, loss_and_gradient),
        Case("the loss alone", (*plain[:-1], False), 1e-4, (0, 1)),
    ]


def _timing(dtype: torch.dtype) -> Timing:
    arguments = _arguments(dtype, 512, 8 * 1024, 1024, 1e-6)
    return Timing(functools.partial(_cross_entropy, *arguments), _flops(*arguments))


_cross_entropy = Operator(
    schema="cross_entropy(Tensor hidden, Tensor weight, Tensor? row_scale, Tensor? bias, "
    "Tensor? mean_row, Tensor targets, float scale, float softcap, float label_smoothing, "
    "float tolerance, float max_dropped, bool want_grad) "
    "-> (Tensor loss, Tensor lse, Tensor grad_hidden, Tensor dropped, Tensor counts)",
    family="cross_entropy",
    check=_check,
    reference=_reference,
    fake=_fake,
    cases=_cases,
    flops=_flops,
    workspace=_workspace,
    timing=_timing,
)

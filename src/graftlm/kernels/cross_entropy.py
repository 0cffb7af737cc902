"""The linear cross-entropy operators, their checks, and the one place that decides what runs them.

`graftlm.training.linear_cross_entropy` makes them differentiable and states the equations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftlm.errors import RequestError
from graftlm.kernels import cross_entropy_native as native
from graftlm.kernels import cross_entropy_reference as reference
from graftlm.kernels.cross_entropy_reference import Gradients, Head, Walk

__all__ = ["Gradients", "Head", "Walk", "backward", "check", "forward"]

MAX_DROPPED = 0.05
"""Probability that the gradient of one position may leave out in all before it is made exact."""


def check(hidden: Tensor, head: Head, targets: Tensor, smoothing: float, tolerance: float) -> None:
    """Raise one error that names every argument that does not fit the others."""
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
    elif targets.numel():
        low, high = torch.stack(torch.aminmax(targets)).tolist()
        if low < 0 or high >= head.weight.shape[0]:
            problems.append(
                f"targets span [{low}, {high}], outside the vocabulary of {head.weight.shape[0]}: "
                "pass supervised positions only"
            )
    scales = head.row_scale
    if scales is not None and (
        scales.shape != head.weight.shape[:1] or scales.dtype != torch.float32
    ):
        problems.append(
            f"expected row_scale ({head.weight.shape[0]},) float32, got {tuple(scales.shape)} "
            f"{scales.dtype}"
        )
    if (head.weight.dtype == torch.int8) != (scales is not None):
        problems.append("a row_scale belongs to an int8 weight, and to no other")
    if head.bias is not None and head.bias.shape != head.weight.shape[:1]:
        problems.append(f"expected bias ({head.weight.shape[0]},), got {tuple(head.bias.shape)}")
    if head.softcap is not None and not head.softcap > 0:
        problems.append(f"softcap must be positive, got {head.softcap}")
    if not 0 <= smoothing < 1:
        problems.append(f"label_smoothing must lie in [0, 1), got {smoothing}")
    if not 0 <= tolerance < 1:
        problems.append(f"tolerance must lie in [0, 1), got {tolerance}")
    if problems:
        raise RequestError("linear_cross_entropy: " + "; ".join(problems))


def forward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    label_smoothing: float = 0.0,
    tolerance: float = 1e-6,
    want_grad: bool = True,
) -> Walk:
    """Losses of all positions and, where wanted, their gradients with respect to ``hidden``.

    Args:
        hidden: (N, D).
        head: the output layer.
        targets: (N,) int64.
        label_smoothing: share of the target spread evenly over the vocabulary.
        tolerance: entries of the softmax up to it may be left out of the gradient, whose total is
            then put on the mean row of the weight. It is an upper bound: the PyTorch reference,
            which 0 selects, leaves nothing out.
        want_grad: also compute the gradient.
    """
    if native.takes(hidden, head, label_smoothing, tolerance):
        return native.forward(
            hidden, head, targets, label_smoothing, tolerance, MAX_DROPPED, want_grad
        )
    return reference.forward(hidden, head, targets, label_smoothing, want_grad)


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

"""Linear cross-entropy (csrc/cross_entropy.hpp), and the gradients that the kernel leaves out."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import RequestError
from graftlm.kernels.cross_entropy import walk_of
from graftlm.kernels.native.arguments import address
from graftlm.kernels.native.compiled import WEIGHT_TYPES, constant, kernels, takes, takes_rows
from graftlm.kernels.native.linear import multiply, multiply_backward
from graftlm.kernels.operator import implement
from graftlm.kernels.products import Compute
from graftlm.kernels.reference import cross_entropy as reference
from graftlm.kernels.reference.cross_entropy import Head, Walk

__all__ = ["register"]

_CLOSER = 100.0
"""A position that drops too much is computed again with a tolerance lower by this factor."""
_KEPT_SHARE = 0.1
"""Share of the softmax that is kept, for planning: about 1 % in a trained model at the default
tolerance, 5 to 10 % in one that reads such text for the first time."""


def register() -> None:
    """Add this kernel to its operator."""
    implement("cross_entropy", "cpu", _walk, accepts=_takes, workspace=_workspace, label="native")


def _takes(
    hidden: Tensor,
    weight: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    mean_row: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float,
    label_smoothing: float,
    tolerance: float,
    *_: Any,
) -> bool:
    """Whether the kernel accepts the arguments. Only the reference supports a tolerance of 0.

    Label smoothing under a softcap needs the mean of the capped logits, which is another walk.
    """
    return (
        takes(hidden)
        and takes_rows(weight, row_scale)
        and tolerance > 0
        and hidden.numel() > 0
        and not (label_smoothing and softcap)
    )


def _workspace(hidden: Tensor, weight: Tensor, *_: Any) -> int:
    """The softmax entries kept, 4 bytes each for row and logit, and hidden states, packed."""
    positions = min(hidden.shape[0], constant("cross_entropy_positions"))
    kept = _KEPT_SHARE * positions * weight.shape[0]
    return int(8 * kept + 8 * positions * weight.shape[1])


def _walk(
    hidden: Tensor,
    weight: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    mean_row: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float,
    label_smoothing: float,
    tolerance: float,
    max_dropped: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if mean_row is None and (want_grad or label_smoothing):
        raise RequestError("cross_entropy: a gradient or label smoothing needs the mean row")
    exact_bf16 = hidden.dtype == torch.bfloat16
    h, targets = hidden.float().contiguous(), targets.contiguous()
    row_scale = None if row_scale is None else row_scale.contiguous()
    head = Head(weight.contiguous(), bias, softcap or None, scale, row_scale)
    bias = None if bias is None else bias.float().contiguous()
    (positions, dim), vocabulary = h.shape, weight.shape[0]
    lse, hit, dropped = h.new_zeros(3, positions).unbind()
    grad = h.new_empty((positions, dim) if want_grad else 0)
    kept = kernels().cross_entropy(
        weight=head.weight.data_ptr(),
        type=WEIGHT_TYPES[weight.dtype],
        row_scale=address(row_scale),
        vocabulary=vocabulary,
        dim=dim,
        bias=address(bias),
        scale=scale,
        softcap=softcap,
        hidden=h.data_ptr(),
        targets=targets.data_ptr(),
        tokens=positions,
        exact_bf16=exact_bf16,
        label_smoothing=label_smoothing,
        tolerance=tolerance,
        max_dropped=max_dropped,
        mean_row=address(mean_row),
        lse=lse.data_ptr(),
        target_logit=hit.data_ptr(),
        grad=grad.data_ptr() if want_grad else 0,
        dropped=dropped.data_ptr(),
        threads=torch.get_num_threads(),
    )
    loss = lse - (1 - label_smoothing) * hit
    if label_smoothing and mean_row is not None:
        mean_bias = 0.0 if bias is None else bias.mean()
        loss -= label_smoothing * scale * (h @ mean_row + mean_bias)
    kept = int(kept)
    walk = Walk(loss, lse, grad, dropped, torch.tensor([kept, 0]))
    if want_grad:
        walk = _completed(
            walk,
            kept,
            h,
            head,
            mean_row,
            targets,
            label_smoothing,
            tolerance,
            max_dropped,
            exact_bf16,
        )
    # Parts of one buffer would tell the dispatcher that outputs alias each other.
    return loss, lse.clone(), grad, dropped.clone(), walk.counts


def _completed(
    walk: Walk,
    kept: int,
    h: Tensor,
    head: Head,
    mean_row: Tensor | None,
    targets: Tensor,
    label_smoothing: float,
    tolerance: float,
    max_dropped: float,
    exact_bf16: bool,
) -> Walk:
    """Fill in the gradients the kernel left out, in place.

    A position that dropped too much probability (``dropped``) is computed again with a lower
    tolerance. A position that keeps entries everywhere (``dropped`` above 1) has flat logits, as in
    an untrained model, and gets the exact product.
    """
    assert walk.grad_hidden is not None
    dense = 0
    missing = ~(walk.dropped <= max_dropped)
    # A NaN position stays NaN at every tolerance, so it is not computed again.
    flat = missing & ~((walk.dropped <= 1) & walk.lse.isfinite())
    at = (missing & ~flat).nonzero().squeeze(1)
    if len(at):
        closer = tolerance / _CLOSER
        again = walk_of(
            h[at], head, targets[at], label_smoothing, closer, max_dropped, True, mean_row
        )
        assert again.grad_hidden is not None
        walk.grad_hidden[at], walk.dropped[at] = again.grad_hidden, again.dropped
        kept, dense = kept + again.kept, dense + again.dense
    at = flat.nonzero().squeeze(1)
    if len(at):
        exact = _exact_gradient(h[at], head, targets[at], walk.lse[at], label_smoothing, exact_bf16)
        walk.grad_hidden[at], walk.dropped[at] = exact, 0.0
        kept, dense = kept + len(at) * head.weight.shape[0], dense + len(at)
    return dataclasses.replace(walk, counts=torch.tensor([kept, dense]))


def _exact_gradient(
    h: Tensor,
    head: Head,
    targets: Tensor,
    lse: Tensor,
    label_smoothing: float,
    exact_bf16: bool,
) -> Tensor:
    """``Σ_v ∂L/∂z_v w_v`` for each position, over the whole vocabulary; (N, D) float32.

    The logits are computed again, a tile at a time, in the arithmetic of the first walk, because
    the log-sum-exp is of those logits. In AMX tiles products of bfloat16 factors are exact, and
    others are split; on AVX2 those of bfloat16 are rounded alike, and others are float32. With up
    to 8 positions, and for a tile in 8 bits, the logits are a little more exact than the walk's.
    """
    logits: Compute = "bfloat16x3"
    if exact_bf16 and head.weight.dtype == torch.bfloat16:
        logits = "bfloat16"
    gradient = torch.zeros_like(h)
    for start in range(0, head.weight.shape[0], reference.tile_rows(len(h))):
        rows = slice(start, start + reference.tile_rows(len(h)))
        tile = head.weight[rows] if head.row_scale is None else head.rows(rows, h.dtype)
        z, _ = multiply(h, tile, None, logits, None)
        dz = reference.gradient_at(
            head, head.finished(z, rows), targets, rows, lse.unsqueeze(1), label_smoothing
        )
        gradient += multiply_backward(dz, tile, "bfloat16x3", None)[0]
    return gradient

"""Linear cross-entropy by the native kernels (csrc/cross_entropy.hpp says how).

The walk is a PyTorch operator, so that a step can be traced without data: shapes and cost are known
from the arguments alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from graftlm.errors import RequestError
from graftlm.kernels import cross_entropy_reference as reference
from graftlm.kernels import native
from graftlm.kernels.cross_entropy_reference import Head, Walk
from graftlm.kernels.library import Compute
from graftlm.kernels.mean_row import mean_row
from graftlm.kernels.native_args import WEIGHT_TYPES
from graftlm.kernels.register import define

__all__ = ["forward", "takes"]

_CLOSER = 100.0
"""A position that drops too much is walked again with a tolerance this much lower."""


def takes(hidden: Tensor, head: Head, label_smoothing: float, tolerance: float) -> bool:
    """Whether the kernels cover this call; a tolerance of 0 asks for what only the reference does.

    Label smoothing under a softcap needs the mean of the capped logits, which is another walk.
    """
    return (
        native.takes(hidden)
        and native.takes_rows(head.weight, head.row_scale)
        and tolerance > 0
        and hidden.numel() > 0
        and not (label_smoothing and head.softcap)
    )


def forward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    label_smoothing: float,
    tolerance: float,
    max_dropped: float,
    want_grad: bool,
    mean: Tensor | None = None,
) -> Walk:
    """As `cross_entropy.forward`, whose arguments `takes` has accepted; ``mean``: the mean row."""
    if mean is None and (want_grad or label_smoothing):
        mean = mean_row(head.weight, head.row_scale)
    loss, lse, grad, dropped, counts = torch.ops.graftlm.cross_entropy(
        hidden,
        head.weight,
        head.row_scale,
        head.bias,
        mean,
        targets,
        head.scale,
        head.softcap or 0.0,
        label_smoothing,
        tolerance,
        max_dropped,
        want_grad,
    )
    kept, dense = int(counts[0]), int(counts[1])
    return Walk(loss, lse, grad if want_grad else None, kept, dropped, dense)


def _walk(
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
    """The operator: ``grad_hidden`` is empty unless wanted, ``counts`` is (kept, dense)."""
    module = native.extension()
    assert module is not None, "ask takes() first"
    if mean is None and (want_grad or label_smoothing):
        raise RequestError("cross_entropy: a gradient or label smoothing needs the mean row")
    exact_bf16 = hidden.dtype == torch.bfloat16
    h, targets = hidden.float().contiguous(), targets.contiguous()
    row_scale = None if row_scale is None else row_scale.contiguous()
    head = Head(weight.contiguous(), bias, softcap or None, scale, row_scale)
    bias = None if bias is None else bias.float().contiguous()
    (positions, dim), vocabulary = h.shape, weight.shape[0]
    lse, hit, dropped = h.new_zeros(3, positions).unbind()
    grad = h.new_empty((positions, dim) if want_grad else 0)
    kept = module.cross_entropy(
        head.weight.data_ptr(),
        WEIGHT_TYPES[weight.dtype],
        0 if row_scale is None else row_scale.data_ptr(),
        vocabulary,
        dim,
        0 if bias is None else bias.data_ptr(),
        scale,
        softcap,
        h.data_ptr(),
        targets.data_ptr(),
        positions,
        exact_bf16,
        label_smoothing,
        tolerance,
        max_dropped,
        0 if mean is None else mean.data_ptr(),
        lse.data_ptr(),
        hit.data_ptr(),
        grad.data_ptr() if want_grad else 0,
        dropped.data_ptr(),
        torch.get_num_threads(),
    )
    loss = lse - (1 - label_smoothing) * hit
    if label_smoothing and mean is not None:
        mean_bias = 0.0 if bias is None else bias.mean()
        loss -= label_smoothing * scale * (h @ mean + mean_bias)
    walk = Walk(loss, lse, grad, int(kept), dropped, dense=0)
    if want_grad:
        walk = _completed(
            walk, h, head, mean, targets, label_smoothing, tolerance, max_dropped, exact_bf16
        )
    # Parts of one buffer would tell the dispatcher that outputs alias each other.
    return loss, lse.clone(), grad, dropped.clone(), torch.tensor([walk.kept, walk.dense])


def _walk_without_data(
    hidden: Tensor,
    weight: Tensor,
    row_scale: Any,
    bias: Any,
    mean: Any,
    targets: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs of the right shapes."""
    per_position = [hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(3)]
    grad = hidden.new_empty(hidden.shape if rest[-1] else 0, dtype=torch.float32)
    loss, lse, dropped = per_position
    return loss, lse, grad, dropped, targets.new_empty(2)


define(
    "cross_entropy(Tensor hidden, Tensor weight, Tensor? row_scale, Tensor? bias, "
    "Tensor? mean_row, Tensor targets, float scale, float softcap, float label_smoothing, "
    "float tolerance, float max_dropped, bool want_grad) "
    "-> (Tensor loss, Tensor lse, Tensor grad_hidden, Tensor dropped, Tensor counts)",
    _walk,
    _walk_without_data,
    backend="CPU",
)


@register_flop_formula([torch.ops.graftlm.cross_entropy])
def _product_flops(hidden_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    """The logits; the sparse gradient next to them is small."""
    return int(2 * hidden_shape[0] * weight_shape[0] * weight_shape[1])


def _completed(
    walk: Walk,
    h: Tensor,
    head: Head,
    mean: Tensor | None,
    targets: Tensor,
    label_smoothing: float,
    tolerance: float,
    max_dropped: float,
    exact_bf16: bool,
) -> Walk:
    """Fill in the gradients the kernel left out, in place.

    A position whose kept entries weigh too little (``dropped`` says how little) is walked again
    more closely. One that keeps entries everywhere (``dropped`` above 1) is flat, as all are in a
    model that has not learned yet, and gets the exact product.
    """
    assert walk.grad_hidden is not None
    kept, dense = walk.kept, 0
    missing = ~(walk.dropped <= max_dropped)
    # What is not a number weighs too little however closely it is walked: not to be tried again.
    flat = missing & ~((walk.dropped <= 1) & walk.lse.isfinite())
    at = (missing & ~flat).nonzero().squeeze(1)
    if len(at):
        closer = tolerance / _CLOSER
        again = forward(h[at], head, targets[at], label_smoothing, closer, max_dropped, True, mean)
        assert again.grad_hidden is not None
        walk.grad_hidden[at], walk.dropped[at] = again.grad_hidden, again.dropped
        kept, dense = kept + again.kept, dense + again.dense
    at = flat.nonzero().squeeze(1)
    if len(at):
        exact = _exact_gradient(h[at], head, targets[at], walk.lse[at], label_smoothing, exact_bf16)
        walk.grad_hidden[at], walk.dropped[at] = exact, 0.0
        kept, dense = kept + len(at) * head.weight.shape[0], dense + len(at)
    return dataclasses.replace(walk, kept=kept, dense=dense)


def _exact_gradient(
    h: Tensor,
    head: Head,
    targets: Tensor,
    lse: Tensor,
    label_smoothing: float,
    exact_bf16: bool,
) -> Tensor:
    """``Σ_v ∂L/∂z_v w_v`` for each position, over the whole vocabulary; (N, D) float32.

    The logits are walked again, a tile at a time, in the arithmetic of the first walk, whose
    log-sum-exp this needs: in AMX tiles products of bfloat16 factors are exact, others are split;
    on AVX2 those of bfloat16 are rounded alike, others float32. Up to 8 positions, and for a tile
    in 8 bits, the logits are a little closer than those of the walk.
    """
    logits: Compute = "bfloat16x3"
    if exact_bf16 and head.weight.dtype == torch.bfloat16:
        logits = "bfloat16"
    gradient = torch.zeros_like(h)
    for start in range(0, head.weight.shape[0], reference.tile_rows(len(h))):
        rows = slice(start, start + reference.tile_rows(len(h)))
        tile = head.weight[rows] if head.row_scale is None else head.rows(rows, h.dtype)
        z, _ = native.linear(h, tile, None, logits)
        dz = reference.gradient_at(
            head, head.finished(z, rows), targets, rows, lse.unsqueeze(1), label_smoothing
        )
        gradient += native.linear_backward(dz, tile, "bfloat16x3")[0]
    return gradient

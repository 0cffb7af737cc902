"""Cross-entropy of a linear output layer, without storing its logits.

For a position with hidden state h (D,), target t, head W (V, D) and bias b (V,):

    a_j = scale · (h · w_j + b_j)                     z_j = softcap(a_j) = c tanh(a_j / c)
    L   = lse(z) − z_t

    ∂L/∂z_j = p_j − [j = t]                           p = softmax(z)
    ∂L/∂h   = Σ_j ∂L/∂z_j · z'_j · w_j                z'_j = scale · (1 − (z_j / c)²)
    ∂L/∂w_j = Σ_positions ∂L/∂z_j · z'_j · h

The vocabulary V is large (262,144 for Gemma 3), so the logits (N, V) would be the largest tensor of
a training step. Instead, the kernel reads the head in tiles that stay in cache, with an online
log-sum-exp, and stores only tensors of (N,) and (N, D) (cut cross-entropy, arXiv 2411.09009).

With a frozen head, the *same* pass over the tiles computes the gradient for h, and the backward
pass only scales it. Most p_j are negligible: entries with p_j ≤ ``tolerance`` may be left out of
the sum. Their total probability, 1 − Σ kept p, is known exactly and reported; a position where it
is too large is computed densely. ``tolerance=0`` keeps all entries. With a trainable head, the
backward pass reads the tiles a second time and all gradients are exact.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graftlm.kernels import cross_entropy
from graftlm.kernels.cross_entropy import Head, Walk

__all__ = ["CrossEntropyStatistics", "linear_cross_entropy"]

NO_SMOOTHING = 0.0
"""The kernels support label smoothing; this package does not use it."""


@dataclasses.dataclass(frozen=True)
class CrossEntropyStatistics:
    """How the gradient of one call was computed. On an accelerator each figure waits for it."""

    walk: Walk
    entries: int

    @property
    def kept_share(self) -> float:
        """Share of the N × V softmax entries that the gradient uses."""
        return self.walk.kept / self.entries

    @property
    def dropped_mass(self) -> float:
        """The largest total probability left out at one position; 0 when exact."""
        return float(self.walk.dropped.max()) if len(self.walk.dropped) else 0.0

    @property
    def dense_positions(self) -> int:
        """Positions whose gradient was computed from all entries."""
        return self.walk.dense


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    row_scale: Tensor | None = None,
    tolerance: float = 1e-6,
) -> tuple[Tensor, CrossEntropyStatistics]:
    """Summed cross-entropy (nats) of ``softcap(logit_scale · (hidden weightᵀ + bias))``.

    Differentiable in ``hidden``, ``weight`` and ``bias``. Memory does not depend on N × V.

    Args:
        hidden: (N, D) hidden states of the supervised positions only, any floating-point type.
        weight: (V, D) output layer; a bfloat16 weight is converted tile by tile, never as a whole.
            A frozen int8 weight needs ``row_scale``.
        targets: (N,) int64 in [0, V).
        bias: (V,) or ``None``.
        softcap: caps the logits at ±softcap smoothly (Gemma 2's ``final_logit_softcapping``).
        logit_scale: multiplies the logits before the cap.
        row_scale: (V,) float32: row r of the layer is ``row_scale[r] * weight[r]``.
        tolerance: with a frozen head, probabilities up to this may be left out of the gradient;
            the loss itself is always complete. 0 keeps all.

    Returns:
        The loss, a float32 scalar (float64 for float64 ``hidden``), and statistics of the gradient.

    Raises:
        RequestError: when shapes, types or values do not fit.
    """
    head = Head(weight, bias, softcap, logit_scale, row_scale)
    cross_entropy.check(hidden, head, targets, NO_SMOOTHING, tolerance)
    head_trains = weight.requires_grad or (bias is not None and bias.requires_grad)
    want_grad = torch.is_grad_enabled() and hidden.requires_grad and not head_trains
    with torch.no_grad():
        walk = cross_entropy.forward(hidden, head, targets, NO_SMOOTHING, tolerance, want_grad)
    loss: Tensor = _LossSum.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, head, targets, walk
    )
    entries = max(hidden.shape[0] * weight.shape[0], 1)
    return loss, CrossEntropyStatistics(walk, entries)


class _LossSum(torch.autograd.Function):
    """The summed loss; the backward pass scales the stored gradient or computes it anew."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        targets: Tensor,
        walk: Walk,
    ) -> Tensor:
        if walk.grad_hidden is not None:
            ctx.dtype = hidden.dtype
            ctx.save_for_backward(walk.grad_hidden)
        else:
            ctx.softcap, ctx.scale = head.softcap, head.scale
            ctx.save_for_backward(hidden, weight, bias, targets, walk.lse, head.row_scale)
        return walk.loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (grad_hidden,) = ctx.saved_tensors
            return (grad_hidden * d_loss).to(ctx.dtype), *(None,) * 5
        hidden, weight, bias, targets, lse, row_scale = ctx.saved_tensors
        head = Head(weight, bias, ctx.softcap, ctx.scale, row_scale)
        grads = cross_entropy.backward(
            hidden, head, targets, lse, NO_SMOOTHING, ctx.needs_input_grad[:3]
        )
        d_hidden = None if grads.hidden is None else (grads.hidden * d_loss).to(hidden.dtype)
        d_weight = None if grads.weight is None else grads.weight.mul_(d_loss)
        d_bias = None if grads.bias is None else grads.bias.mul_(d_loss)
        return d_hidden, d_weight, d_bias, None, None, None

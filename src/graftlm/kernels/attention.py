"""Attention of 16-bit inputs, multiplied in float32.

    y = softmax(s · q kᵀ + m) v

PyTorch's CPU kernel multiplies 16-bit inputs as they come. Where the processor has no instruction
for that, one product after the other: the backward pass of 512 positions of four heads takes 20
times as long as in float32. Here the inputs are widened for the kernel, and nothing wide is kept:
what waits for the backward pass is q, k, v and y in their own type, and one number a row, the
log-sum-exp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["attention"]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, causal: bool
) -> Tensor:
    """Scaled dot-product attention on a CPU, differentiable in q, k and v.

    Args:
        q: (B, H, L, D).
        k: (B, G, S, D); each of its G heads serves H / G neighbouring ones of q.
        v: (B, G, S, D).
        mask: broadcastable to (B, H, L, S): m, or true where attention is paid; ``None``: to all.
        scale: s; ``None``: 1 / √D.
        causal: position i sees positions up to i.

    Returns:
        (B, H, L, D) in the type of q.
    """
    y: Tensor = _Attention.apply(q, k, v, mask, scale, causal)  # type: ignore[no-untyped-call]
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float | None,
        causal: bool,
    ) -> Tensor:
        ctx.scale, ctx.causal = scale, causal
        wide, lse = _forward(*_widened(q, k, v), 0.0, causal, attn_mask=_added(mask), scale=scale)
        y: Tensor = wide.to(q.dtype)
        ctx.save_for_backward(q, k, v, mask, y, lse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, y, lse = ctx.saved_tensors
        dq, dk, dv = _backward(
            dy.float(),
            *_widened(q, k, v),
            y.float(),
            lse,
            0.0,
            ctx.causal,
            attn_mask=_added(mask),
            scale=ctx.scale,
        )
        return dq.to(q.dtype), _gathered(dk, k), _gathered(dv, v), None, None, None


def _widened(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In float32, a head of k and v for each of q."""
    return q.float(), _spread(k.float(), q.shape[1]), _spread(v.float(), q.shape[1])


def _spread(t: Tensor, heads: int) -> Tensor:
    """Each head of k or v as often as heads of q share it; no copy of a single one."""
    return t[:, :, None].expand(-1, -1, heads // t.shape[1], -1, -1).flatten(1, 2)


def _gathered(gradient: Tensor, factor: Tensor) -> Tensor:
    """The gradient of k or v, summed over the heads of q that shared one."""
    batch, heads, positions, size = factor.shape
    return gradient.reshape(batch, heads, -1, positions, size).sum(2).to(factor.dtype)


def _added(mask: Tensor | None) -> Tensor | None:
    """The mask as what is added to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.float()
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, float("-inf"))

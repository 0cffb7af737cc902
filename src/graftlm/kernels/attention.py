"""Attention by blocks of the mask, in float32.

    y = softmax(s · q kᵀ + m) v

Two things that PyTorch's CPU kernel does not do by itself. It multiplies what a mask hides; here
each block of the mask is a product of its own. And it multiplies 16-bit inputs as they come: where
the processor has no instruction for that, one after the other, the backward pass of 512 positions
of four heads takes 20 times as long as in float32; where it has one, a kernel is compiled and kept
for each shape, and blocks are of any shape. Here a block is widened for the kernel, and nothing
wide is kept: what waits for the backward pass is q, k, v and y in their own type, and one number a
row, the log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graftlm.kernels.mask_blocks import Block

__all__ = ["attention"]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    blocks: Sequence[Block],
) -> Tensor:
    """Scaled dot-product attention on a CPU, differentiable in q, k and v.

    Args:
        q: (B, H, L, D).
        k: (B, G, S, D); each of its G heads serves H / G neighbouring ones of q.
        v: (B, G, S, D).
        mask: broadcastable to (B, H, L, S): m, or true where attention is paid; ``None``: to all.
        scale: s; ``None``: 1 / √D.
        blocks: what to compute, all positions in turn; the mask is not read in a causal one. More
            than one needs L = S; a single one reaches to the greater of the two.

    Returns:
        (B, H, L, D) in the type of q.
    """
    y: Tensor = _Attention.apply(q, k, v, mask, scale, blocks)  # type: ignore[no-untyped-call]
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
        blocks: Sequence[Block],
    ) -> Tensor:
        ctx.scale, ctx.blocks = scale, blocks
        rows, heads, length, size = q.shape
        # In the order of its positions in memory, as the layer that follows wants it.
        y = q.new_empty(rows, length, heads, size).transpose(1, 2)
        lse = []
        for block in blocks:
            factors = _factors(q, k, v, block)
            result, sums = _forward(
                *factors, 0.0, block.causal, attn_mask=_added(mask, block), scale=scale
            )
            _part(y, block).copy_(result)
            lse.append(sums)
        ctx.save_for_backward(q, k, v, mask, y, *lse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, y, *lse = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(t) for t in (q, k, v))
        for block, sums in zip(ctx.blocks, lse, strict=True):
            gradients = _backward(
                _part(dy, block).float(),
                *_factors(q, k, v, block),
                _part(y, block).float(),
                sums,
                0.0,
                block.causal,
                attn_mask=_added(mask, block),
                scale=ctx.scale,
            )
            for whole, part in zip((dq, dk, dv), gradients, strict=True):
                _part(whole, block).copy_(_gathered(part, whole.shape[1]))
        return dq, dk, dv, None, None, None


def _part(t: Tensor, block: Block) -> Tensor:
    return t[:, :, block.start : block.stop]


def _factors(q: Tensor, k: Tensor, v: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """A block of each in float32, a head of k and v for each of q."""
    query, key, value = (_part(t, block).float() for t in (q, k, v))
    return query, _spread(key, q.shape[1]), _spread(value, q.shape[1])


def _spread(t: Tensor, heads: int) -> Tensor:
    """Each head of k or v as often as heads of q share it; no copy of a single one."""
    return t[:, :, None].expand(-1, -1, heads // t.shape[1], -1, -1).flatten(1, 2)


def _gathered(gradient: Tensor, heads: int) -> Tensor:
    """The gradient of q, k or v, summed over the heads of q that shared one."""
    batch, all_heads, positions, size = gradient.shape
    if all_heads == heads:
        return gradient
    return gradient.reshape(batch, heads, -1, positions, size).sum(2)


def _added(mask: Tensor | None, block: Block) -> Tensor | None:
    """The block's part of the mask as what is added to the scores."""
    if mask is None or block.causal:
        return None
    part = mask[..., block.start : block.stop, block.start : block.stop]
    if mask.dtype != torch.bool:
        return part.float()
    return torch.zeros_like(part, dtype=torch.float32).masked_fill_(~part, float("-inf"))

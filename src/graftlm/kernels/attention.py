"""Attention by blocks of the mask, in float32.

    y = softmax(s · q kᵀ + m) v

Two things that PyTorch's CPU kernel does not do by itself. It multiplies what a mask hides; here
each block of the mask is a product of its own. And it multiplies 16-bit inputs as they come: where
the processor has no instruction for that, one after the other, the backward pass of 512 positions
of four heads takes 20 times as long as in float32; where it has one, a kernel is compiled and kept
for each shape, and blocks are of any shape. Nothing wide is kept: what waits for the backward pass
is q, k, v and y in their own type, and one number a row, the log-sum-exp.

The reference, and what runs with a mask of numbers, is PyTorch's kernel, given the blocks widened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from graftlm.kernels import native_attention
from graftlm.kernels.mask_blocks import Block
from graftlm.kernels.register import define

__all__ = ["attention"]

_theirs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_theirs_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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
    s = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    numbers = [int(number) for block in blocks for number in block]
    y: Tensor = _attention(q, k, v, mask, s, numbers)[0]
    return y


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, numbers: list[int]
) -> tuple[Tensor, Tensor]:
    y, lse = _empty(q)
    if native_attention.takes(q, k, v, mask):
        native_attention.forward(q, k, v, mask, scale, numbers, y, lse)
        return y, lse
    mask = _whole(mask, q, k)
    for block in _blocks(numbers):
        factors = _factors(q, k, v, block)
        result, sums = _theirs(
            *factors, 0.0, block.causal, attn_mask=_added(mask, block), scale=scale
        )
        _part(y, block).copy_(result)
        lse[:, :, block.start : block.stop] = sums
    return y, lse


def _backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    y: Tensor,
    lse: Tensor,
    scale: float,
    numbers: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    if native_attention.takes(q, k, v, mask):
        return native_attention.backward(dy, q, k, v, mask, y, lse, scale, numbers)
    dq, dk, dv = _empty_backward(dy, q, k, v)
    mask = _whole(mask, q, k)
    for block in _blocks(numbers):
        gradients = _theirs_backward(
            _part(dy, block).float(),
            *_factors(q, k, v, block),
            _part(y, block).float(),
            lse[:, :, block.start : block.stop],
            0.0,
            block.causal,
            attn_mask=_added(mask, block),
            scale=scale,
        )
        for whole, part in zip((dq, dk, dv), gradients, strict=True):
            _part(whole, block).copy_(_gathered(part, whole.shape[1]))
    return dq, dk, dv


def _empty(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    # In the order of its positions in memory, as the layer that follows wants it.
    rows, heads, length, size = q.shape
    y = q.new_empty(rows, length, heads, size).transpose(1, 2)
    return y, q.new_empty(rows, heads, length, dtype=torch.float32)


def _empty_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.scale, ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, mask, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    gradients = _attention_backward(dy, *ctx.saved_tensors, ctx.scale, ctx.numbers)
    return *gradients, None, None, None


_attention_backward = define(
    "attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor y, "
    "Tensor lse, float scale, int[] blocks) -> (Tensor, Tensor, Tensor)",
    _backward,
    _empty_backward,
)
_attention = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, int[] blocks) "
    "-> (Tensor y, Tensor lse)",
    _forward,
    _empty,
    _gradient,
    _keep,
)


@register_flop_formula(torch.ops.graftlm.attention)
def _flops(q_shape: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Two products a block; half of the positions in a causal one."""
    return _product_flops(q_shape, rest[0], rest[-1], products=2)


@register_flop_formula(torch.ops.graftlm.attention_backward)
def _backward_flops(dy_shape: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Five products: the scores once more, and the gradients of scores, q, k and v."""
    return _product_flops(dy_shape, rest[1], rest[-1], products=5)


def _product_flops(q_shape: Any, k_shape: Any, numbers: Sequence[int], products: int) -> int:
    rows, heads, length, size = q_shape
    pairs = 0
    for block in _blocks(numbers):
        queries = min(block.stop, length) - block.start
        keys = min(block.stop, k_shape[2]) - block.start
        pairs += queries * (queries + 1) // 2 if block.causal else queries * keys
    return int(2 * products * rows * heads * pairs * size)


def _blocks(numbers: Sequence[int]) -> list[Block]:
    thirds = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return [Block(start, stop, bool(causal)) for start, stop, causal in thirds]


def _whole(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask with a place for each query and key, so that a block can be cut from it."""
    return None if mask is None else mask.expand(*mask.shape[:-2], q.shape[2], k.shape[2])


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

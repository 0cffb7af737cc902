"""Attention by blocks of the mask, in float32.

    y = softmax(s · q kᵀ + m) v

It differs from PyTorch's CPU kernel in two ways.

- PyTorch's kernel also multiplies masked positions. Here each block of the mask is a product of its
  own, and nothing outside the blocks is computed.
- PyTorch's kernel multiplies 16-bit inputs in 16 bits. Without an instruction for that, the
  backward pass of 512 positions and four heads takes 20 times as long as in float32. With one,
  PyTorch compiles and keeps a kernel for each shape, and blocks have any shape.

The backward pass needs q, k, v and y in their own type, and one number a row, the log-sum-exp.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.mask_blocks import Block
from graftlm.kernels.operator import Case, Operator, Timing
from graftlm.kernels.products import draw
from graftlm.kernels.reference import attention as reference
from graftlm.system import fast_bfloat16

__all__ = ["attention", "require_result", "skips_blocks"]


def skips_blocks(q: Tensor) -> bool:
    """Whether a kernel on the device of ``q`` computes only the blocks that it is given."""
    return q.device.type == "cpu"  # a fake tensor of a GPU says that it `is_cpu`


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    blocks: Sequence[Block],
) -> Tensor:
    """Scaled dot-product attention, differentiable in q, k and v.

    Args:
        q: (B, H, L, D).
        k: (B, G, S, D); each of its G heads serves H / G neighbouring ones of q.
        v: (B, G, S, D).
        mask: broadcastable to (B, H, L, S): m, or true where attention is paid; ``None``: to all.
        scale: s; ``None``: 1 / √D.
        blocks: the blocks to compute, which cover all positions in order. The mask is not read in a
            causal block. More than one block needs L = S; a single one reaches to the greater.

    Returns:
        (B, H, L, D) in the type of q.

    Raises:
        ModelError: sizes do not fit each other, or blocks leave out a position.
    """
    s = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    numbers = [int(number) for block in blocks for number in block]
    y: Tensor = _attention(q, k, v, mask, s, numbers)[0]
    return y


def _check(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, blocks: Sequence[int]
) -> None:
    if not _fits(q, k, v, blocks):
        raise ModelError(
            f"q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} and the blocks "
            f"{list(blocks)}: expected (B, H, L, D), (B, G, S, D) twice, H a multiple of G, "
            "and blocks (start, stop, causal) of all positions in turn"
        )


def _fits(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[int]) -> bool:
    if not q.ndim == k.ndim == v.ndim == 4:
        return False
    batches, heads, queries, size = q.shape
    groups, keys = k.shape[1:3]
    shapes = k.shape == v.shape == (batches, groups, keys, size)
    return shapes and groups > 0 and heads % groups == 0 and _covers(blocks, queries, keys)


def _covers(blocks: Sequence[int], queries: int, keys: int) -> bool:
    """Whether the blocks cover all positions, each starting where the previous one stops."""
    starts, stops = blocks[::3], blocks[1::3]
    ends = [0, *stops]
    whole = len(blocks) % 3 == 0 and ends[-1] == max(queries, keys)
    growing = all(start < stop for start, stop in zip(starts, stops, strict=False))
    return whole and growing and list(starts) == ends[:-1] and (len(stops) < 2 or queries == keys)


def require_result(dy: Tensor, q: Tensor, y: Tensor, lse: Tensor) -> None:
    """Check what a backward pass gets of its forward pass.

    Raises:
        ModelError: the shapes or types are not those that the forward pass gives for ``q``.
    """
    if not (dy.shape == y.shape == q.shape and y.dtype == q.dtype and lse.shape == q.shape[:-1]):
        raise ModelError(
            f"y is {tuple(y.shape)} of {y.dtype}, its gradient {tuple(dy.shape)} and lse "
            f"{tuple(lse.shape)}: expected what the forward pass gives for q, {tuple(q.shape)} of "
            f"{q.dtype}"
        )


def _check_backward(dy: Tensor, *rest: Any) -> None:
    q, k, v, mask, y, lse, scale, blocks = rest
    _check(q, k, v, mask, scale, blocks)
    require_result(dy, q, y, lse)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.scale, ctx.blocks = inputs
    ctx.save_for_backward(q, k, v, mask, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    gradients = _attention_backward(dy, *ctx.saved_tensors, ctx.scale, ctx.blocks)
    return *gradients, None, None, None


def _flops(q: Tensor, k: Tensor, *rest: Any) -> int:
    """Two products a block."""
    return 2 * 2 * _pairs(q, k, rest[-1]) * q.shape[-1]


def _backward_flops(dy: Tensor, q: Tensor, k: Tensor, *rest: Any) -> int:
    """Five products: the scores once more, and the gradients of scores, q, k and v."""
    return 2 * 5 * _pairs(q, k, rest[-1]) * q.shape[-1]


def _pairs(q: Tensor, k: Tensor, numbers: Sequence[int]) -> int:
    """Pairs of a query and a key, over all heads; half of the positions in a causal block."""
    rows, heads, length, _ = q.shape
    pairs = 0
    for block in reference.blocks_of(numbers):
        queries = min(block.stop, length) - block.start
        keys = min(block.stop, k.shape[2]) - block.start
        pairs += queries * (queries + 1) // 2 if block.causal else queries * keys
    return rows * heads * pairs


def _workspace(q: Tensor, *rest: Any) -> int:
    """The scores of the longest block, twice, and its factors, in float32."""
    longest = max((block.stop - block.start for block in reference.blocks_of(rest[-1])), default=0)
    return 4 * q.shape[0] * q.shape[1] * longest * (2 * longest + 4 * q.shape[3])


def _backward_workspace(dy: Tensor, *rest: Any) -> int:
    return 2 * _workspace(*rest)


def _cases() -> list[Case]:
    q, k, v = draw(1, 4, 150, 64), draw(1, 2, 150, 64, seed=1), draw(1, 2, 150, 64, seed=2)
    mask = torch.ones(150, 150, dtype=torch.bool).tril().triu(-40)[None, None]
    two_blocks = [0, 70, 1, 70, 150, 1]
    narrow = (t.bfloat16() for t in (q, k, v))
    return [
        Case("causal", (q, k, v, None, 0.125, [0, 150, 1]), 1e-5),
        Case("two blocks", (q, k, v, None, 0.125, two_blocks), 1e-5),
        Case("a window", (q, k, v, mask, 0.125, [0, 150, 0]), 1e-5),
        Case("bfloat16", (*narrow, None, 0.125, [0, 150, 1]), 1e-2),
    ]


def _backward_cases() -> list[Case]:
    made = []
    for case in _cases():
        q, k, v, mask, scale, blocks = case.arguments
        y, lse = reference.forward(q, k, v, mask, scale, blocks)
        dy = draw(*q.shape, seed=3, dtype=q.dtype)
        arguments = (dy, q, k, v, mask, y, lse, scale, blocks)
        made.append(Case(case.label, arguments, 2 * case.bound))
    return made


def _timing(dtype: torch.dtype) -> Timing:
    q = draw(1, 4, 512, 64, dtype=dtype)
    arguments = (q, q, q, None, 0.125, [0, 512, 1])
    flops = _flops(*arguments)
    if dtype == torch.bfloat16 and fast_bfloat16():
        # Models leave one block of such inputs to PyTorch's kernel, which this family counts too.
        theirs = functools.partial(F.scaled_dot_product_attention, q, q, q, is_causal=True)
        return Timing(theirs, flops)
    return Timing(functools.partial(_attention, *arguments), flops)


_attention_backward = Operator(
    schema="attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor y, "
    "Tensor lse, float scale, int[] blocks) -> (Tensor dq, Tensor dk, Tensor dv)",
    family="attention",
    check=_check_backward,
    reference=reference.backward,
    fake=reference.empty_slopes,
    cases=_backward_cases,
    flops=_backward_flops,
    workspace=_backward_workspace,
)
_attention = Operator(
    schema="attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, int[] blocks) "
    "-> (Tensor y, Tensor lse)",
    family="attention",
    check=_check,
    reference=reference.forward,
    fake=reference.empty_result,
    cases=_cases,
    gradient=_gradient,
    keep=_keep,
    flops=_flops,
    workspace=_workspace,
    timing=_timing,
)

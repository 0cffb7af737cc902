"""Attention (csrc/attention.cpp): factors of one type, and a mask that says yes or no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graftlm.kernels.native.compiled import TYPES, constant, kernels, takes
from graftlm.kernels.operator import implement
from graftlm.kernels.reference.attention import blocks_of, empty_result

__all__ = ["register"]

Strided = tuple[int, int, int, int]
"""An address, and the strides of batch, head and position."""

_NONE: Strided = (0, 0, 0, 0)


def register() -> None:
    """Add these kernels to their operators."""
    implement("attention", "cpu", _forward, accepts=_takes, workspace=_workspace, label="native")
    implement(
        "attention_backward",
        "cpu",
        _backward,
        accepts=_takes_backward,
        workspace=_backward_workspace,
        label="native",
    )


def _takes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *_: Any) -> bool:
    alike = q.dtype == k.dtype == v.dtype and k.shape == v.shape
    dense = all(t.stride(-1) == 1 for t in (q, k, v))
    return takes(q) and alike and dense and (mask is None or mask.dtype == torch.bool)


def _takes_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, y: Tensor, *_: Any
) -> bool:
    return _takes(q, k, v, mask) and y.stride(-1) == 1


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, blocks: Sequence[int]
) -> tuple[Tensor, Tensor]:
    y, lse = empty_result(q)
    seen = _expanded(mask, q, k)
    kernels().attention(
        sizes=_sizes(q, k),
        type=TYPES[q.dtype],
        q=_strided(q),
        k=_strided(k),
        v=_strided(v),
        mask=_NONE if seen is None else _strided(seen),
        scale=scale,
        blocks=list(blocks),
        y=_strided(y),
        lse=lse.data_ptr(),
        threads=torch.get_num_threads(),
    )
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
    blocks: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    dy, lse = dy.to(q.dtype), lse.float().contiguous()
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    seen = _expanded(mask, q, k)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    kernels().attention_backward(
        sizes=_sizes(q, k),
        type=TYPES[q.dtype],
        q=_strided(q),
        k=_strided(k),
        v=_strided(v),
        mask=_NONE if seen is None else _strided(seen),
        scale=scale,
        blocks=list(blocks),
        y=_strided(y),
        lse=lse.data_ptr(),
        dy=_strided(dy),
        dq=_strided(dq),
        dk=_strided(dk),
        dv=_strided(dv),
        threads=torch.get_num_threads(),
    )
    return dq, dk, dv


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int, int]:
    batches, heads, queries, size = q.shape
    groups, keys = k.shape[1:3]
    return batches, heads, groups, queries, keys, size


def _expanded(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask with a place for each head, query and key."""
    if mask is None:
        return None
    mask = mask.expand(*q.shape[:3], k.shape[2])
    return mask if mask.stride(-1) == 1 else mask.contiguous()


def _strided(t: Tensor) -> Strided:
    batch, head, position, _ = t.stride()
    return t.data_ptr(), batch, head, position


def _workspace(q: Tensor, *rest: Any) -> int:
    """Keys and values, packed, and the scores of a tile of queries."""
    tile = constant("attention_queries")
    lengths = _lengths(rest[-1])
    tasks = q.shape[0] * q.shape[1] * sum(-(-length // tile) for length in lengths)
    return _for_each_thread(tasks, lengths, 2 * q.shape[3] + tile)


def _backward_workspace(dy: Tensor, q: Tensor, k: Tensor, *rest: Any) -> int:
    """Keys twice and values once, packed; and the gradients of both, for each head of q."""
    lengths = _lengths(rest[-1])
    heads = q.shape[0] * q.shape[1]
    gradients = 2 * 4 * heads * k.shape[2] * q.shape[3]
    return _for_each_thread(heads * len(lengths), lengths, 3 * q.shape[3]) + gradients


def _for_each_thread(tasks: int, lengths: list[int], numbers: int) -> int:
    """Float32 numbers for each position of the longest block, for each thread with a task."""
    return 4 * numbers * max(lengths, default=0) * min(torch.get_num_threads(), tasks)


def _lengths(numbers: Sequence[int]) -> list[int]:
    return [block.stop - block.start for block in blocks_of(numbers)]

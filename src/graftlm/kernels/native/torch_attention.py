"""Attention by PyTorch's CPU kernel, which is given each block widened to float32.

It runs what csrc/attention.cpp does not take, such as a mask of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graftlm._compat.torch_attention import cpu_attention, cpu_attention_backward
from graftlm.kernels.operator import implement
from graftlm.kernels.reference.attention import (
    added_mask,
    blocks_of,
    empty_result,
    factors,
    part,
    summed_heads,
)

__all__ = ["register"]


def register() -> None:
    """Add these kernels to their operators."""
    implement("attention", "cpu", _forward, workspace=_workspace, label="PyTorch")
    implement(
        "attention_backward", "cpu", _backward, workspace=_backward_workspace, label="PyTorch"
    )


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, numbers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    y, lse = empty_result(q)
    for block in blocks_of(numbers):
        result, sums = cpu_attention(
            *factors(q, k, v, block),
            0.0,
            block.causal,
            attn_mask=added_mask(mask, block, q, k),
            scale=scale,
        )
        part(y, block).copy_(result)
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
    numbers: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for block in blocks_of(numbers):
        pieces = cpu_attention_backward(
            part(dy, block).float(),
            *factors(q, k, v, block),
            part(y, block).float(),
            lse[:, :, block.start : block.stop],
            0.0,
            block.causal,
            attn_mask=added_mask(mask, block, q, k),
            scale=scale,
        )
        for whole, piece in zip(gradients, pieces, strict=True):
            part(whole, block).copy_(summed_heads(piece, whole.shape[1]))
    return gradients


def _workspace(q: Tensor, *rest: Any) -> int:
    """The longest block of q, k, v and y in float32, a head of k and v for each of q."""
    longest = max((block.stop - block.start for block in blocks_of(rest[-1])), default=0)
    return 4 * 4 * q.shape[0] * q.shape[1] * longest * q.shape[3]


def _backward_workspace(dy: Tensor, *rest: Any) -> int:
    """The same with dy, and the three gradients."""
    return 2 * _workspace(*rest)

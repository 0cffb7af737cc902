"""The native attention (csrc/attention.cpp), handed its tensors as in `native.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftlm.kernels import native
from graftlm.kernels.crossing import TYPES

__all__ = ["backward", "forward", "takes"]

Strided = tuple[int, int, int, int]
"""An address, and the strides of batch, head and position."""

_NONE: Strided = (0, 0, 0, 0)


def takes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernel covers this call: factors of one type, a mask that says yes or no."""
    alike = q.dtype == k.dtype == v.dtype and q.shape[-1] == v.shape[-1]
    dense = all(t.stride(-1) == 1 for t in (q, k, v)) and (mask is None or mask.stride(-1) == 1)
    return native.takes(q) and alike and dense and (mask is None or mask.dtype == torch.bool)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    blocks: Sequence[int],
    y: Tensor,
) -> Tensor:
    """Write the result to ``y``; give the log-sum-exp of each row, (B, H, L) float32."""
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    native.kernels().attention(
        *_shared(q, k, v, mask, scale, blocks, y, lse), torch.get_num_threads()
    )
    return lse


def backward(
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
    """The gradients of q, k and v, each in its type and order in memory."""
    dy = dy.to(q.dtype)
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    gradients = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    native.kernels().attention_backward(
        *_shared(q, k, v, mask, scale, blocks, y, lse),
        _strided(dy),
        *(_strided(gradient) for gradient in gradients),
        torch.get_num_threads(),
    )
    return gradients


def _shared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    blocks: Sequence[int],
    y: Tensor,
    lse: Tensor,
) -> tuple[object, ...]:
    batches, heads, queries, size = q.shape
    sizes = (batches, heads, k.shape[1], queries, k.shape[2], size)
    seen = _NONE
    if mask is not None:
        seen = _strided(mask.expand(batches, heads, queries, k.shape[2]))
    factors = (_strided(q), _strided(k), _strided(v))
    return sizes, TYPES[q.dtype], *factors, seen, scale, list(blocks), _strided(y), lse.data_ptr()


def _strided(t: Tensor) -> Strided:
    batch, head, position, _ = t.stride()
    return t.data_ptr(), batch, head, position

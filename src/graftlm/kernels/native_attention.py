"""The native attention (csrc/attention.cpp), handed its tensors as in `native.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels import native
from graftlm.kernels.native_args import TYPES

__all__ = ["backward", "forward", "takes"]

Strided = tuple[int, int, int, int]
"""An address, and the strides of batch, head and position."""

_NONE: Strided = (0, 0, 0, 0)


def takes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernel covers this call: factors of one type, a mask that says yes or no."""
    alike = q.dtype == k.dtype == v.dtype and k.shape == v.shape
    dense = all(t.stride(-1) == 1 for t in (q, k, v))
    return native.takes(q) and alike and dense and (mask is None or mask.dtype == torch.bool)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    blocks: Sequence[int],
    y: Tensor,
    lse: Tensor,
) -> None:
    """Write the result to ``y``, and to ``lse`` (B, H, L) the log-sum-exp of each row."""
    call = _Call(q, k, v, mask, blocks)
    native.kernels().attention(
        *call.arguments, scale, list(blocks), _strided(y), lse.data_ptr(), torch.get_num_threads()
    )


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
    alike = dy.shape == y.shape == q.shape and y.dtype == q.dtype and y.stride(-1) == 1
    if not alike or lse.shape != q.shape[:-1]:
        raise ModelError(
            f"y is {tuple(y.shape)} of {y.dtype}, its gradient {tuple(dy.shape)} and lse "
            f"{tuple(lse.shape)}: expected what the forward pass gives for q, {tuple(q.shape)} of "
            f"{q.dtype}"
        )
    dy, lse = dy.to(q.dtype), lse.float().contiguous()
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    gradients = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    call = _Call(q, k, v, mask, blocks)
    native.kernels().attention_backward(
        *call.arguments,
        scale,
        list(blocks),
        _strided(y),
        lse.data_ptr(),
        _strided(dy),
        *(_strided(gradient) for gradient in gradients),
        torch.get_num_threads(),
    )
    return gradients


class _Call:
    """Sizes, type and factors as the extension wants them; holds the tensors it gives addresses of.

    Raises:
        ModelError: sizes that do not fit each other.
    """

    __slots__ = ("arguments", "held")

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, blocks: Sequence[int]
    ) -> None:
        batches, heads, queries, size = q.shape
        groups, keys = k.shape[1:3]
        fits = k.shape == v.shape == (batches, groups, keys, size) and groups and not heads % groups
        if not fits or not _covers(blocks, queries, keys):
            raise ModelError(
                f"q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} and the blocks "
                f"{list(blocks)}: expected (B, H, L, D), (B, G, S, D) twice, H a multiple of G, "
                "and blocks (start, stop, causal) of all positions in turn"
            )
        seen = _NONE
        if mask is not None:
            mask = mask.expand(batches, heads, queries, keys)
            mask = mask if mask.stride(-1) == 1 else mask.contiguous()
            seen = _strided(mask)
        self.held = (q, k, v, mask)
        sizes = (batches, heads, groups, queries, keys, size)
        self.arguments = (sizes, TYPES[q.dtype], _strided(q), _strided(k), _strided(v), seen)


def _covers(blocks: Sequence[int], queries: int, keys: int) -> bool:
    """Whether blocks reach from the first position to the last, each where the last stops."""
    starts, stops = blocks[::3], blocks[1::3]
    ends = [0, *stops]
    whole = len(blocks) % 3 == 0 and ends[-1] == max(queries, keys)
    growing = all(start < stop for start, stop in zip(starts, stops, strict=False))
    return whole and growing and list(starts) == ends[:-1] and (len(stops) < 2 or queries == keys)


def _strided(t: Tensor) -> Strided:
    batch, head, position, _ = t.stride()
    return t.data_ptr(), batch, head, position

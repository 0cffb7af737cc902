"""Attention of sequences end to end by PyTorch's flash attention (arXiv 2307.08691).

It is not written in Triton; it stands here because it is for the same devices. PyTorch compiles it
for NVIDIA's cards from Ampere on, for 16 bits and for heads of up to 256 numbers.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from graftlm._compat.torch_attention import flash_sequences, flash_sequences_backward

__all__ = [
    "backward_workspace",
    "sequence_attention",
    "sequence_attention_backward",
    "takes",
    "takes_backward",
]

WIDEST_HEAD = 256
EIGHTS = 8
"""Numbers of a head come in eights."""
_NARROW = (torch.float16, torch.bfloat16)
Pair = tuple[Tensor, Tensor]


def takes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> bool:
    """Whether PyTorch has the kernel for these on their device."""
    size = q.shape[-1]
    return (
        q.dtype in _NARROW
        and q.dtype == k.dtype == v.dtype
        and size <= WIDEST_HEAD
        and size % EIGHTS == 0
        and q.shape[2] > 0
        and q.device.type == "cuda"
        and _has_flash_attention(q.device)
    )


def takes_backward(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> bool:
    """The same for the gradient."""
    return dy.dtype == q.dtype and takes(q, k, v)


def backward_workspace(dy: Tensor, q: Tensor, k: Tensor, *_: Any) -> int:
    """The gradient of q in float32, and those of k and v for each head of q that shares one."""
    shared = 2 * q.nbytes if k.shape[1] != q.shape[1] else 0
    return int(4 * q.numel() + shared)


@functools.cache
def _has_flash_attention(device: torch.device) -> bool:
    if torch.version.hip is not None:
        return False  # windows, and sequences of various lengths, were not tried there
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def sequence_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, borders: Tensor, window: int
) -> Pair:
    """Y (1, H, T, D) and lse (1, H, T); arguments as of the operator."""
    places, longest = _places(tuple(borders.tolist()), q.device)
    y, lse, *_ = flash_sequences(
        *(_rows(t) for t in (q, k, v)),
        places,
        places,
        longest,
        longest,
        0.0,
        not window,
        False,
        scale=scale,
        window_size_left=window - 1 if window else -1,
        window_size_right=0,
    )
    return y.contiguous().transpose(0, 1).unsqueeze(0), lse.unsqueeze(0)


def sequence_attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    lse: Tensor,
    scale: float,
    borders: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v; arguments as of the operator."""
    places, longest = _places(tuple(borders.tolist()), q.device)
    unused = q.new_empty(0)  # the state of random numbers, of which there are none
    slopes = flash_sequences_backward(
        *(_rows(t) for t in (dy, q, k, v, y)),
        lse.squeeze(0).contiguous(),
        places,
        places,
        longest,
        longest,
        0.0,
        not window,
        torch.zeros(2, dtype=torch.uint64, device=q.device),
        unused,
        scale=scale,
        window_size_left=window - 1 if window else -1,
        window_size_right=0,
    )
    dq, dk, dv = (slope.transpose(0, 1).unsqueeze(0) for slope in slopes)
    return dq, dk, dv


def _rows(t: Tensor) -> Tensor:
    """(1, H, T, D) → (T, H, D), with the numbers of a head side by side."""
    rows = t.squeeze(0).transpose(0, 1)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@functools.lru_cache(maxsize=4)
def _places(borders: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """The borders on the device, once for all layers, and the length of the longest sequence."""
    longest = max(b - a for a, b in itertools.pairwise(borders))
    places = torch.tensor(borders, dtype=torch.int32)
    return places.to(device, non_blocking=True), longest

"""The levels that 4-bit weights and their 8-bit scales may take.

**NF4** (QLoRA, https://arxiv.org/abs/2305.14314, equation 4 and appendix E). Neural weights are
close to normal, so 16 levels at quantiles of N(0, 1) are used about equally often. With Q the
quantile function and p falling evenly from `delta` to 1/2:

    positive side   8 levels   Q(p),  p = delta + (1/2 - delta) i / 8,   i = 0 … 7
    negative side   7 levels  -Q(p),  p = delta + (1/2 - delta) i / 7,   i = 0 … 6
    zero            exactly 0, so that padding and pruned weights survive

all divided by the largest, so that they span [-1, 1].

**Dynamic map** (8-bit Approximations for Parallelism in Deep Learning,
https://arxiv.org/abs/1511.04561). A sign, a decimal exponent written in unary, and the bits left
over as a linear fraction: for e = 0 … 6 the 2^e midpoints of an even partition of [0.1, 1], times
10^(e-6), with both signs, and 0 and 1. Fine near zero, coarse near one.

    paper   here
    Q       statistics.NormalDist().inv_cdf
    δ       DELTA
    q_i     nf4_levels()[i]

Both are the tables bitsandbytes uses, to the last bit. That fixes the arithmetic: probabilities,
partitions and the final division are in float32. The same construction in float64 is off by one
unit in the last place at ten of the levels (rejected: a checkpoint would decode differently).

The numbers are cached on the host as NumPy arrays and become a tensor when asked for. A cache of
tensors was rejected: one filled under `FakeTensorMode` (memory planning) would poison later runs,
and copying at most 64 kB costs microseconds.
"""

from __future__ import annotations

import functools
import statistics

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["dynamic_levels", "grid_codes", "nf4_levels", "nf4_pairs", "nf4_thresholds"]

DELTA = 0.9677083
"""Mean of 1 - 1/32 and 1 - 1/30: the outermost quantile, rounded as QLoRA's code has it."""

GRID = 65536
"""Points of the even grid on [-1, 1] to which a scale is rounded before its 8-bit level is found.
bitsandbytes looks the level up in a table of this size on a CPU. The seven levels nearest zero fall
between two points and are never chosen. Kept all the same: the codes have to agree."""

Floats = npt.NDArray[np.float32]


def nf4_levels(device: torch.device | str | None = None) -> Tensor:
    """float32 ``[16]``: the levels in rising order; code 0 is -1, code 7 is 0, code 15 is 1."""
    return torch.tensor(_nf4(), device=device)


def nf4_thresholds(device: torch.device | str | None = None) -> Tensor:
    """float32 ``[15]``: midpoints of neighbouring levels. A value on a midpoint goes down."""
    return torch.tensor(_midpoints(_nf4()), device=device)


def nf4_pairs(device: torch.device | str | None = None) -> Tensor:
    """float32 ``[256, 2]``: the two levels a byte of codes stands for, high nibble first."""
    byte = np.arange(256)
    pairs = np.stack([_nf4()[byte >> 4], _nf4()[byte & 15]], axis=1)
    return torch.tensor(pairs, device=device)


def dynamic_levels(device: torch.device | str | None = None) -> Tensor:
    """float32 ``[256]``: the signed dynamic map in rising order, from -0.9929688 to 1."""
    return torch.tensor(_dynamic(), device=device)


def grid_codes(device: torch.device | str | None = None) -> Tensor:
    """uint8 ``[65536]``: the dynamic level nearest to each point of the even grid on [-1, 1]."""
    return torch.tensor(_grid_codes(), device=device)


@functools.cache
def _nf4() -> Floats:
    quantile = statistics.NormalDist().inv_cdf
    positive = [quantile(float(p)) for p in _linspace(DELTA, 0.5, 9)[:-1]]
    negative = [-quantile(float(p)) for p in _linspace(DELTA, 0.5, 8)[:-1]]
    levels: Floats = np.sort(np.array([*negative, 0.0, *positive], dtype=np.float32))
    spanning: Floats = levels / levels[-1]
    return spanning


@functools.cache
def _dynamic() -> Floats:
    magnitudes = [
        np.float32(10.0 ** (exponent - 6)) * _midpoints(_linspace(0.1, 1.0, 2**exponent + 1))
        for exponent in range(7)
    ]
    positive = np.concatenate(magnitudes)
    ends = np.array([0.0, 1.0], dtype=np.float32)
    return np.sort(np.concatenate([-positive, ends, positive]))


@functools.cache
def _grid_codes() -> npt.NDArray[np.uint8]:
    index = np.arange(GRID, dtype=np.float32)
    points = np.float32(2) * index / np.float32(GRID - 1) - np.float32(1)
    return np.searchsorted(_midpoints(_dynamic()), points, side="left").astype(np.uint8)


def _midpoints(values: Floats) -> Floats:
    return (values[:-1] + values[1:]) * np.float32(0.5)


def _linspace(start: float, stop: float, count: int) -> Floats:
    """Even steps as `torch.linspace` takes them in float32: from the nearer end, rounded once.

    A float32 step times a small integer is exact in float64, which stands for its fused
    multiply-add on any machine.
    """
    first, last = np.float32(start), np.float32(stop)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count, dtype=np.float64)
    upwards = np.float64(first) + step * index
    downwards = np.float64(last) - step * index[::-1]
    return np.where(index < count // 2, upwards, downwards).astype(np.float32)

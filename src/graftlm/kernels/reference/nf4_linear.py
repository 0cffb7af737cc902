"""The product with a weight stored in 4 bits, in plain PyTorch.

With the frozen weight W (out, in) held in 4 bits (QLoRA, arXiv 2305.14314, equation 5):

    forward    y  = x Wᵀ      x (..., in)  → y (..., out)
    backward   dx = dy W      dy (..., out) → dx (..., in);  W gets no gradient

W is dequantised a tile of rows at a time; each tile is multiplied and dropped. So the memory beside
the operands is one tile. On a GPU it is the matrix, unless that is very large: each tile is some
twenty operations to start, and a step of a 7B model has 7,000 tiles of a CPU's size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from graftlm.kernels import nf4
from graftlm.kernels.nf4.double_quant import GROUP_SIZE
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = [
    "TILE_ELEMENTS",
    "compute_type",
    "linear",
    "linear_backward",
    "row_tiles",
    "tile_elements",
]

TILE_ELEMENTS = 1 << 21
"""Weights dequantised at a time: 8 MB in float32, small beside a model, large beside a call."""
TILE_ELEMENTS_ON_A_CARD = 1 << 26
"""The same on an accelerator: 128 MB in 16 bits."""


def linear(x: Tensor, w4: NF4Weight, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + bias`` for ``x`` (..., in), returned in the type of ``x``."""
    out_features, in_features = w4.shape
    compute = compute_type(x)
    rows = x.reshape(-1, in_features).to(compute)
    y = rows.new_empty(rows.shape[0], out_features)
    for start, stop, tile in row_tiles(w4, compute):
        y[:, start:stop] = rows @ tile.T
    if bias is not None:
        y += bias
    return y.to(x.dtype).reshape(*x.shape[:-1], out_features)


def linear_backward(dy: Tensor, w4: NF4Weight) -> Tensor:
    """``dy W`` for ``dy`` (..., out), returned in the type of ``dy``."""
    out_features, in_features = w4.shape
    compute = compute_type(dy)
    rows = dy.reshape(-1, out_features).to(compute)
    dx = torch.zeros(rows.shape[0], in_features, device=dy.device)
    dx = dx.to(torch.promote_types(compute, torch.float32))
    for start, stop, tile in row_tiles(w4, compute):
        dx += rows[:, start:stop] @ tile
    return dx.to(dy.dtype).reshape(*dy.shape[:-1], in_features)


def compute_type(x: Tensor) -> torch.dtype:
    """At least float32 on a CPU, where 16-bit products are rarely faster; else as given."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_cpu else x.dtype


def tile_elements(device: torch.device) -> int:
    """Weights dequantised at a time on this device."""
    return TILE_ELEMENTS if device.type in ("cpu", "meta") else TILE_ELEMENTS_ON_A_CARD


def row_tiles(w4: NF4Weight, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """Yield ``(start, stop, W[start:stop])`` over the rows of W, dequantised to ``dtype``."""
    out_features, in_features = w4.shape
    step = max(1, tile_elements(w4.codes.device) // max(in_features, 1))
    for start in range(0, out_features, step):
        stop = min(start + step, out_features)
        tile = _flat_range(w4, start * in_features, stop * in_features, dtype)
        yield start, stop, tile.reshape(stop - start, in_features)


def _flat_range(w4: NF4Weight, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Elements ``first:last`` of the flattened weight.

    Blocks cross rows, so a part of the weight is cut at whole groups of blocks that share a nested
    maximum, and the ends are cut off after it is dequantised.
    """
    align = w4.block_size * GROUP_SIZE
    group = first // align
    base, end = group * align, min(-(-last // align) * align, w4.numel)
    nested = w4.nested_absmax
    part = dataclasses.replace(
        w4,
        codes=w4.codes[base // 2 : -(-end // 2)],
        absmax=w4.absmax[group * GROUP_SIZE : -(-end // w4.block_size)],
        nested_absmax=None if nested is None else nested[group : -(-end // align)],
        shape=(end - base,),
    )
    return nf4.dequantize(part, dtype)[first - base : last - base]

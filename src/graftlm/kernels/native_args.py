"""How tensors cross to the native kernels: as addresses, types and sizes, checked here.

Each class holds on to the tensors whose addresses it gives: an address outlives nothing.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.nf4.codebook import dynamic_levels
from graftlm.kernels.nf4.double_quant import GROUP_SIZE
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["TYPES", "WEIGHT_TYPES", "Factors", "Frozen", "LowRank", "Stored"]

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
WEIGHT_TYPES = TYPES | {torch.int8: 3}
"""Also of weights whose rows have a scale each."""


class LowRank(NamedTuple):
    """A trained update ``scaling · B A`` beside a weight: A [rank, in], B [out, rank]."""

    A: Tensor
    B: Tensor
    scaling: float


@functools.cache
def _dynamic_map() -> Tensor:
    return dynamic_levels()


class Frozen:
    """A weight as the products want it, stored in 4 bits or dense; holds what it gives."""

    __slots__ = ("arguments", "held")

    def __init__(self, w: NF4Weight | Tensor) -> None:
        if isinstance(w, Tensor):
            dense = w.detach().contiguous()
            self.held: object = dense
            self.arguments = (dense.data_ptr(), 0, 0, 0, 0, *w.shape, 0, TYPES[w.dtype])
        else:
            weight = Stored(w, *w.shape)
            self.held = weight
            self.arguments = (*weight.arguments, -1)


class Factors:
    """The factors of an update as the extension wants them, and room for the thin product."""

    __slots__ = ("arguments", "held", "thin")

    def __init__(self, update: LowRank | None, like: Tensor) -> None:
        if update is None:
            self.thin = like.new_empty(0)
            self.arguments: tuple[float, ...] = (0, 0, 0, 0.0, 0)
            return
        A, B = (factor.detach().float().contiguous() for factor in (update.A, update.B))
        self.held = (A, B)
        self.thin = like.new_empty((*like.shape[:-1], len(A)))
        self.arguments = (
            A.data_ptr(),
            B.data_ptr(),
            len(A),
            update.scaling,
            self.thin.data_ptr(),
        )


class Stored:
    """A stored weight as the extension wants it; holds the tensors whose addresses it gives."""

    __slots__ = ("arguments", "held")

    def __init__(self, w4: NF4Weight, rows: int, cols: int) -> None:
        blocks = -(-w4.numel // w4.block_size)
        codes = _checked("codes", w4.codes, torch.uint8, (w4.numel + 1) // 2)
        nested, offset, levels = w4.nested_absmax, w4.offset, 0
        if nested is not None and offset is not None:
            absmax = _checked("absmax", w4.absmax, torch.uint8, blocks)
            nested = _checked("nested_absmax", nested, torch.float32, -(-blocks // GROUP_SIZE))
            offset = _checked("offset", offset, torch.float32, 1)
            levels = _dynamic_map().data_ptr()
        else:
            absmax = _checked("absmax", w4.absmax, torch.float32, blocks)
        self.held = (codes, absmax, nested, offset)
        self.arguments = (
            codes.data_ptr(),
            absmax.data_ptr(),
            0 if nested is None else nested.data_ptr(),
            levels,
            0 if offset is None else offset.data_ptr(),
            rows,
            cols,
            w4.block_size,
        )


def _checked(name: str, tensor: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    if tensor.dtype != dtype or tensor.numel() != count or not tensor.is_cpu:
        raise ModelError(
            f"{name} of a 4-bit weight has {tensor.numel()} elements of {tensor.dtype} on "
            f"{tensor.device}: expected {count} of {dtype} on the cpu; the weight is corrupt, or "
            "its parts were moved or converted apart"
        )
    return tensor if tensor.is_contiguous() else tensor.contiguous()

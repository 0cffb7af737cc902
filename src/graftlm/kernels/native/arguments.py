"""Weights and updates in the form of the extension: addresses, types and sizes.

Each object keeps its tensors alive, so that their addresses are valid until the call is over.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor

from graftlm.kernels.native.compiled import TYPES
from graftlm.kernels.nf4.codebook import dynamic_levels
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["FROZEN", "STORED", "UPDATE", "Factors", "Frozen", "LowRank", "Stored", "address"]

STORED = ("codes", "absmax", "nested", "map", "offset", "rows", "cols", "block")
"""Names in C++ of what `Stored.arguments` holds, in order; a test compares them."""
FROZEN = (*STORED, "dense_type")
"""The same of `Frozen.arguments`."""
UPDATE = ("a", "b", "rank", "scaling", "thin")
"""The same of `Factors.arguments`."""


class LowRank(NamedTuple):
    """A trained update ``scaling · B A`` beside a weight: A [rank, in], B [out, rank]."""

    A: Tensor
    B: Tensor
    scaling: float


def address(tensor: Tensor | None) -> int:
    """The address of a tensor's memory; 0 for ``None``."""
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def _dynamic_map() -> Tensor:
    return dynamic_levels()


class Stored:
    """A stored 4-bit weight."""

    __slots__ = ("alive", "arguments")

    def __init__(self, w4: NF4Weight, rows: int, cols: int) -> None:
        codes, absmax = w4.codes.contiguous(), w4.absmax.contiguous()
        nested, offset, levels = w4.nested_absmax, w4.offset, 0
        if nested is not None and offset is not None:
            nested, offset = nested.contiguous(), offset.contiguous()
            levels = _dynamic_map().data_ptr()
        else:
            nested = offset = None
        self.alive = (codes, absmax, nested, offset)
        self.arguments = (
            codes.data_ptr(),
            absmax.data_ptr(),
            address(nested),
            levels,
            address(offset),
            rows,
            cols,
            w4.block_size,
        )


class Frozen:
    """The frozen factor of a product: a stored weight, or a dense one."""

    __slots__ = ("alive", "arguments")

    def __init__(self, w: NF4Weight | Tensor) -> None:
        if isinstance(w, Tensor):
            dense = w.detach().contiguous()
            self.alive: object = dense
            # A block size of 0 means that the first address is that of a dense weight.
            self.arguments = (dense.data_ptr(), 0, 0, 0, 0, *w.shape, 0, TYPES[w.dtype])
        else:
            stored = Stored(w, *w.shape)
            self.alive = stored
            self.arguments = (*stored.arguments, -1)


class Factors:
    """The factors of an update, and room for the thin product; all zero without an update."""

    __slots__ = ("alive", "arguments", "thin")

    def __init__(self, update: LowRank | None, like: Tensor) -> None:
        if update is None:
            self.thin = like.new_empty(0)
            self.arguments: tuple[float, ...] = (0, 0, 0, 0.0, 0)
            return
        A, B = (factor.detach().float().contiguous() for factor in (update.A, update.B))
        self.alive = (A, B)
        self.thin = like.new_empty((*like.shape[:-1], len(A)))
        self.arguments = (
            A.data_ptr(),
            B.data_ptr(),
            len(A),
            update.scaling,
            self.thin.data_ptr(),
        )

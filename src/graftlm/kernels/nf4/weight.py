"""The stored form of a 4-bit weight: `NF4Weight`."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

__all__ = ["NF4Weight"]


@dataclasses.dataclass(frozen=True)
class NF4Weight:
    """A tensor in 4-bit NormalFloat, in the layout of bitsandbytes.

    The weight is flattened row-major and cut into blocks of ``block_size`` elements; blocks may
    cross rows, and the last one may be short. With ``n = numel``, ``b = ceil(n / block_size)``:

    Attributes:
        codes: uint8 ``[ceil(n / 2)]``; two 4-bit codes a byte, the first in the high nibble.
        absmax: the largest magnitude of each block: float32 ``[b]``, or uint8 ``[b]`` (indices into
            the signed dynamic map) when double-quantised.
        nested_absmax: float32 ``[ceil(b / 256)]``, the scale of each group of 256 block maxima;
            ``None`` unless double-quantised.
        offset: float32 scalar ``[]``, the mean taken off the block maxima before they were
            quantised; ``None`` unless double-quantised.
        shape: the shape of the weight, ``(out_features, in_features)`` for a linear layer.
        dtype: the floating-point type the weight had before it was quantised.
        block_size: elements that share one maximum (64 in the paper).
    """

    codes: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    offset: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    block_size: int = 64

    @property
    def double_quantized(self) -> bool:
        """Whether the block maxima are themselves stored in 8 bits."""
        return self.nested_absmax is not None

    @property
    def numel(self) -> int:
        """Number of weights (not of stored bytes)."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of storage: codes, block maxima, and their own scales."""
        parts = (self.codes, self.absmax, self.nested_absmax, self.offset)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def bits_per_parameter(self) -> float:
        """Storage per weight in bits; tends to 4.127 with double quantisation, 4.5 without."""
        return 8 * self.nbytes / max(self.numel, 1)

    @property
    def device(self) -> torch.device:
        """The device of the codes."""
        return self.codes.device

    def to(self, device: torch.device | str) -> NF4Weight:
        """The same weight on another device; the stored types never change."""
        return dataclasses.replace(
            self,
            codes=self.codes.to(device),
            absmax=self.absmax.to(device),
            nested_absmax=None if self.nested_absmax is None else self.nested_absmax.to(device),
            offset=None if self.offset is None else self.offset.to(device),
        )

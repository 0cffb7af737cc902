"""8 bits per weight and a scale for each row: half the size of 16 bits.

    W_rd ≈ s_r C_rd t_d    t_d = max_r |W_rd|    s_r = max_d |W_rd / t_d| / 127    C rounded, int8

It is made for the embedding table and the output head, whose rows are words. A lookup scales one
row of codes. The logit of a word is the product of its row of codes with h · t, times its scale.
Without t, a few features that are large in all words would determine the precision of all others:
t reduces the error of Gemma-3-270M's table from 1.9 % to 0.9 %.
(Absmax quantisation by row: arXiv 2208.07339, section 2; features evened out first: 2211.10438.)

    W  weight (V, D)      C  codes      s  row_scale      t  feature_scale
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from graftlm.frozen.formats import register_format
from graftlm.frozen.weight import FrozenWeight, ScaledRows, StorageSettings
from graftlm.kernels.decode_linear import MOST_ROWS, few_rows_linear, has_kernel

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; not imported when the package runs

__all__ = ["Int8Rows"]

LARGEST = 127
TINY = 1e-30
"""The scale of a row or feature of zeros."""
AT_ONCE = 4096
"""Rows that are quantised or widened together, so that little additional memory is needed."""


@register_format
class Int8Rows(FrozenWeight):
    """A frozen weight (V, D) in 8 bits.

    Args:
        codes: (V, D) int8.
        row_scale: (V,) float32.
        feature_scale: (D,) float32.
        dtype: the type the weight had.
    """

    format = "int8"
    scales = frozenset({"row_scale", "feature_scale"})

    def __init__(
        self,
        codes: Tensor,
        row_scale: Tensor,
        feature_scale: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.codes, self.row_scale, self.feature_scale = codes, row_scale, feature_scale
        out_features, in_features = codes.shape
        self.shape, self.dtype = (out_features, in_features), dtype

    @classmethod
    def quantize(cls, weight: Tensor, settings: StorageSettings | None = None) -> Self:
        """Store a weight of any floating-point type; a row of zeros stays one."""
        weight = weight.detach()
        stored = cls.empty((weight.shape[0], weight.shape[1]), weight.dtype, None, weight.device)
        if weight.is_meta:
            return stored
        stored.feature_scale.copy_(torch.maximum(weight.amax(0), -weight.amin(0)))
        divisor = stored.feature_scale.clamp_min(TINY)
        for rows in _tiles(weight):
            w = weight[rows].float() / divisor
            stored.row_scale[rows] = w.abs().amax(1) / LARGEST
            steps = w.div_(stored.row_scale[rows].clamp_min(TINY).unsqueeze(1))
            stored.codes[rows] = steps.round_().to(torch.int8)
        return stored

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int],
        dtype: torch.dtype,
        settings: StorageSettings | None,
        device: torch.device | str,
    ) -> Self:
        """Without values."""
        return cls(
            torch.empty(shape, dtype=torch.int8, device=device),
            torch.empty(shape[0], dtype=torch.float32, device=device),
            torch.empty(shape[1], dtype=torch.float32, device=device),
            dtype,
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense matrix, in ``dtype`` or the type it had."""
        return self.widened(slice(None)).to(dtype or self.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Codes and scales."""
        return {
            "codes": self.codes,
            "row_scale": self.row_scale,
            "feature_scale": self.feature_scale,
        }

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same weight over other tensors."""
        return type(self)(
            tensors["codes"], tensors["row_scale"], tensors["feature_scale"], self.dtype
        )

    def scaled_rows(self, dtype: torch.dtype) -> ScaledRows:
        """The codes and their scales."""
        return ScaledRows(self.codes, self.row_scale, self.feature_scale)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows (..., D) of the weight, in float32."""
        return self.widened(ids)

    def widened(self, rows: slice | Tensor) -> Tensor:
        """Some rows in float32."""
        scaled = self.codes[rows].float().mul_(self.row_scale[rows].unsqueeze(-1))
        return scaled.mul_(self.feature_scale)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x Wᵀ + bias`` with a part of the weight widened at a time."""
        few = x.numel() <= MOST_ROWS * x.shape[-1] and not torch.is_grad_enabled()
        if few and has_kernel(x, self.codes, self.row_scale):
            scaled = x.float() * self.feature_scale
            y = few_rows_linear(scaled, self.codes, self.row_scale).to(x.dtype)
        else:
            y = _ByTiles.apply(x, self)  # type: ignore[no-untyped-call]
        return y if bias is None else y + bias


class _ByTiles(torch.autograd.Function):
    """``x Wᵀ`` with a part of the weight widened at a time, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Int8Rows) -> Tensor:
        ctx.weight = weight
        return torch.cat(
            [F.linear(x, weight.widened(part).to(x.dtype)) for part in _tiles(weight.codes)],
            dim=-1,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        parts = _tiles(ctx.weight.codes)
        return sum(dy[..., part] @ ctx.weight.widened(part).to(dy.dtype) for part in parts), None


def _tiles(weight: Tensor) -> list[slice]:
    return [slice(at, at + AT_ONCE) for at in range(0, len(weight), AT_ONCE)]

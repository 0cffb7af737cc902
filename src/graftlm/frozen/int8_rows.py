"""Embedding table and output head in 8 bits, a scale for each row: half of what 16 bits take.

    W_rd ≈ s_r C_rd t_d    t_d = max_r |W_rd|    s_r = max_d |W_rd / t_d| / 127    C rounded, int8

A row is a word: what is looked up is one code row, scaled, and the logit of a word is the product
of its code row with h · t, times its scale. Without t a few large features, the same for all
words, set the steps of all others: it takes the error of Gemma-3-270M's table from 1.9 % to 0.9 %.
(Absmax quantisation by row: arXiv 2208.07339, section 2; features evened out first: 2211.10438.)

    W  weight (V, D)      C  codes      s  row_scale      t  feature_scale
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from graftlm.frozen.keeps_types import KeepsTypes
from graftlm.kernels import native
from graftlm.kernels.decode_linear import MOST_ROWS, few_rows_linear

__all__ = ["Int8Embedding", "Int8Output", "Int8Rows"]

LARGEST = 127
TINY = 1e-30
"""In place of the scale of a row or feature of zeros."""
AT_ONCE = 4096
"""Rows that are quantised, or widened, together: little beside the weight is in memory."""


class Int8Rows(KeepsTypes):
    """A frozen weight (V, D), shared by a table and a head that are tied.

    There is no `weight` here or in the layers: model code that reads one would take codes for it.

    Args:
        codes: (V, D) int8.
        row_scale: (V,) float32.
        feature_scale: (D,) float32.
    """

    codes: Tensor
    row_scale: Tensor
    feature_scale: Tensor

    def __init__(self, codes: Tensor, row_scale: Tensor, feature_scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("row_scale", row_scale)
        self.register_buffer("feature_scale", feature_scale)

    @classmethod
    def of(cls, weight: Tensor) -> Int8Rows:
        """Store a weight of any floating-point type; a row of zeros stays one."""
        weight = weight.detach()
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        row_scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        if weight.is_meta:
            return cls(codes, row_scale, torch.empty(weight.shape[1], device="meta"))
        feature_scale = torch.maximum(weight.amax(0), -weight.amin(0)).float()
        divisor = feature_scale.clamp_min(TINY)
        for rows in _tiles(weight):
            w = weight[rows].float() / divisor
            row_scale[rows] = w.abs().amax(1) / LARGEST
            steps = w.div_(row_scale[rows].clamp_min(TINY).unsqueeze(1))
            codes[rows] = steps.round_().to(torch.int8)
        return cls(codes, row_scale, feature_scale)

    def forward(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Rows (..., D) of the weight it stands for, in float32."""
        scaled = self.codes[rows].float().mul_(self.row_scale[rows].unsqueeze(-1))
        return scaled.mul_(self.feature_scale)


class Int8Embedding(nn.Module):
    """A frozen table ``ids (...) → (..., D)``.

    Args:
        rows: the table.
        dtype: type of the result.
        factor: multiplies it (Gemma's √D), rounded to ``dtype`` as transformers does.
        padding_idx: kept for those who ask; nothing trains.
    """

    def __init__(
        self,
        rows: Int8Rows,
        dtype: torch.dtype,
        factor: float = 1.0,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows.codes.shape
        self.dtype, self.factor, self.padding_idx = dtype, factor, padding_idx
        self.rows = rows

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ``ids``."""
        e: Tensor = self.rows(ids).to(self.dtype)
        return e if self.factor == 1.0 else e * torch.tensor(self.factor, dtype=self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype  # as that of a plain table
        return self

    def extra_repr(self) -> str:
        """Sizes in ``print(model)``."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class _ByTiles(torch.autograd.Function):
    """``x Wᵀ`` with a part of the weight widened at a time, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Int8Rows) -> Tensor:
        ctx.rows = rows
        return torch.cat(
            [F.linear(x, rows(part).to(x.dtype)) for part in _tiles(rows.codes)], dim=-1
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        parts = _tiles(ctx.rows.codes)
        return sum(dy[..., part] @ ctx.rows(part).to(dy.dtype) for part in parts), None


def _tiles(weight: Tensor) -> list[slice]:
    return [slice(at, at + AT_ONCE) for at in range(0, len(weight), AT_ONCE)]


class Int8Output(nn.Module):
    """A frozen output layer ``(..., in_features) → (..., out_features)``.

    Args:
        rows: the weight; of a tied head the table's own.
        bias: (out_features,) or ``None``.
    """

    def __init__(self, rows: Int8Rows, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = rows.codes.shape
        self.rows = rows
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all words; training computes its loss without (`linear_cross_entropy`)."""
        few = x.numel() <= MOST_ROWS * x.shape[-1] and not torch.is_grad_enabled()
        if few and native.takes(x):
            scaled = x.float() * self.rows.feature_scale
            y = few_rows_linear(scaled, self.rows.codes, self.rows.row_scale).to(x.dtype)
        else:
            y = _ByTiles.apply(x, self.rows)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Sizes in ``print(model)``."""
        return f"{self.in_features}, {self.out_features}"

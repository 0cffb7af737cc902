"""Embedding table and output head in 8 bits, a scale for each row: half of what 16 bits take.

    W_r ≈ s_r · C_r        s_r = max |W_r| / 127        C_r = round(W_r / s_r), int8

A row is a word: what is looked up is one code row times one scale, and the logit of a word is the
product with its code row times its scale. The error of a weight is at most s_r / 2, about 1 % of a
row's spread. (Absmax quantisation by row: arXiv 2208.07339, section 2.)

    W  weight      C  codes (named ``weight``)      s  row_scale
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftlm.kernels.few_rows import MOST_ROWS, few_rows_linear

__all__ = ["Int8Embedding", "Int8Output", "Int8Rows", "quantize_rows"]

LARGEST = 127
AT_ONCE = 4096
"""Rows that are quantised together: little beside the weight is in memory."""


class Int8Rows(NamedTuple):
    """A weight (V, D) as codes (V, D) int8 and scales (V,) float32."""

    codes: Tensor
    row_scale: Tensor


def quantize_rows(weight: Tensor) -> Int8Rows:
    """Store a weight (V, D) of any floating-point type in 8 bits; a row of zeros stays one."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    row_scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for start in range(0, len(weight), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        w = weight[rows].detach().float()
        row_scale[rows] = w.abs().amax(1) / LARGEST
        codes[rows] = (w / row_scale[rows].clamp_min(1e-30).unsqueeze(1)).round_().to(torch.int8)
    return Int8Rows(codes, row_scale)


class Int8Embedding(nn.Module):
    """A frozen table ``ids (...) → (..., D)``.

    Args:
        rows: the table.
        dtype: type of the result.
        factor: multiplies it (Gemma's √D), rounded to ``dtype`` as transformers does.
        padding_idx: kept for those who ask; nothing trains.
    """

    weight: Tensor
    row_scale: Tensor

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
        self.register_buffer("weight", rows.codes)
        self.register_buffer("row_scale", rows.row_scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ``ids``."""
        looked_up = F.embedding(ids, self.weight).float()
        e = (looked_up * self.row_scale[ids].unsqueeze(-1)).to(self.dtype)
        return e if self.factor == 1.0 else e * torch.tensor(self.factor, dtype=self.dtype)

    def extra_repr(self) -> str:
        """Sizes in ``print(model)``."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Int8Output(nn.Module):
    """A frozen output layer ``(..., in_features) → (..., out_features)``.

    Args:
        rows: the weight; a tied one is the table's own tensors.
        bias: (out_features,) or ``None``.
    """

    weight: Tensor
    row_scale: Tensor

    def __init__(self, rows: Int8Rows, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = rows.codes.shape
        self.register_buffer("weight", rows.codes)
        self.register_buffer("row_scale", rows.row_scale)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all words; training computes its loss without (`linear_cross_entropy`)."""
        if x.numel() <= MOST_ROWS * x.shape[-1] and not torch.is_grad_enabled():
            y = few_rows_linear(x, self.weight, self.row_scale)
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.row_scale.to(x.dtype)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Sizes in ``print(model)``."""
        return f"{self.in_features}, {self.out_features}"

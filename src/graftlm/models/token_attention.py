"""Attention of one new token to all before it, in float32.

    y = softmax(s · q kᵀ + m) v          q (B, H, 1, D)      k, v (B, G, S, D)      H = n G

The n heads of a group become n rows of one product with their k, so that nothing is copied.
PyTorch's kernel spends ten times as long for one token of 25 rows, most of it outside arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["token_attention"]


def token_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """(B, H, 1, D) → (B, 1, H, D) in the type of ``query``.

    Args:
        query: (B, H, 1, D).
        key: (B, G, S, D) in any floating-point type.
        value: (B, G, S, E).
        mask: (B or 1, 1, 1, S): m, or true where attention is paid.
        scale: s; ``None``: 1 / √D.
    """
    batch, heads, _, features = query.shape
    groups = key.shape[1]
    q = query.float() * (features**-0.5 if scale is None else scale)
    scores = q.view(batch, groups, heads // groups, features) @ key.float().transpose(2, 3)
    if mask is not None and mask.dtype == torch.bool:
        scores.masked_fill_(~mask, float("-inf"))
    elif mask is not None:
        scores += mask
    y = scores.softmax(-1) @ value.float()
    return y.view(batch, 1, heads, -1).to(query.dtype)

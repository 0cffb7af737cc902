"""LoRA on a frozen weight in plain PyTorch (arXiv 2106.09685); W is dense or stored in 4 bits.

u = x Aᵀ                       (..., r)
y = x Wᵀ + b + s · u Bᵀ        (..., out)

v  = s · dy B                  (..., r)
dx = dy W + v A                (..., in)
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.kernels.reference import nf4_linear

__all__ = ["backward", "forward"]


def forward(
    x: Tensor, w: NF4Weight | Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Y and u, both in the type of ``x``."""
    wide = nf4_linear.compute_type(x)
    rows = x.to(wide)
    u = rows @ A.to(wide).T
    if isinstance(w, Tensor):
        y = torch.nn.functional.linear(rows, w.to(wide), None if bias is None else bias.to(wide))
    else:
        y = nf4_linear.linear(rows, w, bias)
    _add_product(y, u, B.to(wide).T, scaling)
    return y.to(x.dtype), u.to(x.dtype)


def backward(
    dy: Tensor, w: NF4Weight | Tensor, A: Tensor, B: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Dx and v, both in the type of ``dy``."""
    wide = nf4_linear.compute_type(dy)
    rows = dy.to(wide)
    v = scaling * (rows @ B.to(wide))
    dx = rows @ w.to(wide) if isinstance(w, Tensor) else nf4_linear.linear_backward(rows, w)
    _add_product(dx, v, A.to(wide), 1.0)
    return dx.to(dy.dtype), v.to(dy.dtype)


def _add_product(y: Tensor, thin: Tensor, factor: Tensor, scaling: float) -> None:
    """``y += scaling · thin · factor`` without another tensor of the size of y."""
    y.view(-1, y.shape[-1]).addmm_(thin.reshape(-1, thin.shape[-1]), factor, alpha=scaling)

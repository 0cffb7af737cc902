"""Products with a frozen weight, dense or in 4 bits, alone or with a low-rank update.

    few rows      the kernel that reads the codes once          `nf4_few_rows`
    many rows     dequantise into a reused buffer, then PyTorch's product, which is the vendor's
    the update    two thin products beside it                   `low_rank`

On a card whose tensor cores Triton does not use, and for float32, PyTorch multiplies all of it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from graftlm.kernels.products import rows_of
from graftlm.kernels.triton import nf4_few_rows
from graftlm.kernels.triton.launch import fast_dots
from graftlm.kernels.triton.low_rank import add_, down
from graftlm.kernels.triton.nf4_dequantize import dequantize_into_buffer

__all__ = [
    "lora_linear",
    "lora_linear_backward",
    "nf4_linear",
    "nf4_linear_backward",
    "nf4_lora_linear",
    "nf4_lora_linear_backward",
]

Result = tuple[Tensor, Tensor]


def _times(x: Tensor, stored: tuple[Any, ...], bias: Tensor | None) -> Tensor:
    shape, block_size = stored[4], stored[5]
    rows = rows_of(x)
    if nf4_few_rows.fits(rows, shape[1], block_size) and (rows == 1 or fast_dots(x)):
        return nf4_few_rows.few_rows(x, *stored, bias)
    weight = dequantize_into_buffer(*stored, x.dtype)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _times_transposed(dy: Tensor, stored: tuple[Any, ...]) -> Tensor:
    return dy @ dequantize_into_buffer(*stored, dy.dtype)


def _down(x: Tensor, factor: Tensor, scaling: float = 1.0) -> Tensor:
    if fast_dots(x):
        return down(x, factor, scaling)
    return (x @ factor.T.to(x.dtype)).mul_(scaling)


def _add(y: Tensor, u: Tensor, factor: Tensor, scaling: float = 1.0) -> Tensor:
    if fast_dots(y):
        return add_(y, u, factor, scaling)
    flat, thin = y.view(-1, y.shape[-1]), u.reshape(-1, u.shape[-1])
    flat.addmm_(thin, factor.T.to(y.dtype), alpha=scaling)
    return y


def nf4_linear(x: Tensor, *rest: Any) -> Tensor:
    """``x Wᵀ + b``; arguments as of the operator."""
    return _times(x, rest[:6], rest[6])


def nf4_linear_backward(dy: Tensor, *rest: Any) -> Tensor:
    """``dy W``; arguments as of the operator."""
    return _times_transposed(dy, rest[:6])


def nf4_lora_linear(x: Tensor, *rest: Any) -> Result:
    """``x Wᵀ + b + s · u Bᵀ`` and ``u = x Aᵀ``; arguments as of the operator."""
    bias, A, B, scaling, _ = rest[6:]
    u = _down(x, A)
    return _add(_times(x, rest[:6], bias), u, B, scaling), u


def nf4_lora_linear_backward(dy: Tensor, *rest: Any) -> Result:
    """``dy W + v A`` and ``v = s · dy B``; arguments as of the operator."""
    A, B, scaling, _ = rest[6:]
    v = _down(dy, B.T, scaling)
    return _add(_times_transposed(dy, rest[:6]), v, A.T), v


def lora_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float, compute: str
) -> Result:
    """`nf4_lora_linear` with a dense weight."""
    u = _down(x, A)
    y = F.linear(x, w.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return _add(y.contiguous(), u, B, scaling), u


def lora_linear_backward(
    dy: Tensor, w: Tensor, A: Tensor, B: Tensor, scaling: float, compute: str
) -> Result:
    """`nf4_lora_linear_backward` with a dense weight."""
    v = _down(dy, B.T, scaling)
    return _add((dy @ w.to(dy.dtype)).contiguous(), v, A.T), v

"""The native norm and gated unit (csrc/elementwise.cpp), handed their tensors as in `native.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from graftlm.kernels.native import kernels
from graftlm.kernels.native_args import TYPES

__all__ = ["gated_unit", "gated_unit_backward", "rms_norm", "rms_norm_backward"]


def rms_norm(x: Tensor, weight: Tensor, shift: float, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of each row of ``x`` (..., D), and 1 / √(mean(x²) + ε) of each, float32 (...)."""
    x, weight = x.contiguous(), weight.detach().contiguous()
    y, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
    kernels().rms_norm(
        x.data_ptr(),
        TYPES[x.dtype],
        rstd.numel(),
        x.shape[-1],
        weight.data_ptr(),
        TYPES[weight.dtype],
        shift,
        eps,
        y.data_ptr(),
        rstd.data_ptr(),
        torch.get_num_threads(),
    )
    return y, rstd


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, shift: float) -> Tensor:
    """The gradient for ``x``, in its type; ``dy`` is of the same type."""
    dy, x, weight = dy.contiguous(), x.contiguous(), weight.detach().contiguous()
    dx = torch.empty_like(x)
    kernels().rms_norm_backward(
        dy.data_ptr(),
        x.data_ptr(),
        TYPES[x.dtype],
        rstd.numel(),
        x.shape[-1],
        weight.data_ptr(),
        TYPES[weight.dtype],
        shift,
        rstd.contiguous().data_ptr(),
        dx.data_ptr(),
        torch.get_num_threads(),
    )
    return dx


def gated_unit(g: Tensor, u: Tensor, k: float, a: float) -> Tensor:
    """``act(g) · u`` of two tensors of one shape and type."""
    g, u = g.contiguous(), u.contiguous()
    y = torch.empty_like(g)
    kernels().gated(
        g.data_ptr(),
        u.data_ptr(),
        TYPES[g.dtype],
        g.numel(),
        k,
        a,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def gated_unit_backward(
    dy: Tensor, g: Tensor, u: Tensor, k: float, a: float
) -> tuple[Tensor, Tensor]:
    """The gradients for ``g`` and ``u``; all are of one shape and type."""
    dy, g, u = dy.contiguous(), g.contiguous(), u.contiguous()
    dg, du = torch.empty_like(g), torch.empty_like(u)
    kernels().gated_backward(
        dy.data_ptr(),
        g.data_ptr(),
        u.data_ptr(),
        TYPES[g.dtype],
        g.numel(),
        k,
        a,
        dg.data_ptr(),
        du.data_ptr(),
        torch.get_num_threads(),
    )
    return dg, du

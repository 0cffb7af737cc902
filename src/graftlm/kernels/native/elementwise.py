"""The RMS norm and the gated unit (csrc/elementwise.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graftlm.kernels.native.compiled import TYPES, kernels, takes
from graftlm.kernels.operator import implement

__all__ = ["register"]


def register() -> None:
    """Add these kernels to their operators."""
    for name, function, accepts in (
        ("rms_norm", _rms_norm, _takes_norm),
        ("rms_norm_backward", _rms_norm_backward, _takes_norm_backward),
        ("gated_unit", _gated_unit, _takes_gate),
        ("gated_unit_backward", _gated_unit_backward, _takes_gate_backward),
    ):
        implement(name, "cpu", function, accepts=accepts, label="native")


def _takes_norm(x: Tensor, weight: Tensor, *_: Any) -> bool:
    return takes(x) and takes(weight)


def _takes_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, *_: Any) -> bool:
    return takes(x) and takes(weight) and dy.dtype == x.dtype


def _takes_gate(g: Tensor, *_: Any) -> bool:
    return takes(g)


def _takes_gate_backward(dy: Tensor, g: Tensor, *_: Any) -> bool:
    return takes(g) and dy.dtype == g.dtype


def _rms_norm(x: Tensor, weight: Tensor, shift: float, eps: float) -> tuple[Tensor, Tensor]:
    x, weight = x.contiguous(), weight.detach().contiguous()
    y, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
    kernels().rms_norm(
        x=x.data_ptr(),
        type=TYPES[x.dtype],
        rows=rstd.numel(),
        dim=x.shape[-1],
        weight=weight.data_ptr(),
        weight_type=TYPES[weight.dtype],
        shift=shift,
        eps=eps,
        y=y.data_ptr(),
        rstd=rstd.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return y, rstd


def _rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, shift: float) -> Tensor:
    dy, x, weight = dy.contiguous(), x.contiguous(), weight.detach().contiguous()
    rstd, dx = rstd.contiguous(), torch.empty_like(x)
    kernels().rms_norm_backward(
        dy=dy.data_ptr(),
        x=x.data_ptr(),
        type=TYPES[x.dtype],
        rows=rstd.numel(),
        dim=x.shape[-1],
        weight=weight.data_ptr(),
        weight_type=TYPES[weight.dtype],
        shift=shift,
        rstd=rstd.data_ptr(),
        dx=dx.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return dx


def _gated_unit(g: Tensor, u: Tensor, k: float, a: float) -> Tensor:
    g, u = g.contiguous(), u.contiguous()
    y = torch.empty_like(g)
    kernels().gated(
        g=g.data_ptr(),
        u=u.data_ptr(),
        type=TYPES[g.dtype],
        numel=g.numel(),
        slope=k,
        cubic=a,
        y=y.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return y


def _gated_unit_backward(
    dy: Tensor, g: Tensor, u: Tensor, k: float, a: float
) -> tuple[Tensor, Tensor]:
    dy, g, u = dy.contiguous(), g.contiguous(), u.contiguous()
    dg, du = torch.empty_like(g), torch.empty_like(u)
    kernels().gated_backward(
        dy=dy.data_ptr(),
        g=g.data_ptr(),
        u=u.data_ptr(),
        type=TYPES[g.dtype],
        numel=g.numel(),
        slope=k,
        cubic=a,
        dg=dg.data_ptr(),
        du=du.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return dg, du

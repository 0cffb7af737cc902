"""The gated unit of a feed-forward layer (arXiv 2002.05202) in one pass, and its gradient.

    y = act(g) · u,     act(g) = g · σ(k (g + a g³))

SiLU is k = 1, a = 0; the tanh approximation of GELU is k = 2 √(2/π), a = 0.044715, since
½ (1 + tanh z) = σ(2z). Kept for the backward pass are g and u; written as separate operations,
act(g) is kept beside them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels import native, native_elementwise
from graftlm.kernels.register import define

__all__ = ["GELU_TANH", "SILU", "gated_unit"]

SILU = (1.0, 0.0)
GELU_TANH = (2 * math.sqrt(2 / math.pi), 0.044715)


def gated_unit(g: Tensor, u: Tensor, act: tuple[float, float]) -> Tensor:
    """``act(g) · u``.

    Args:
        g: (..., D), the gate.
        u: (..., D), of the same type.
        act: (k, a): `SILU` or `GELU_TANH`.

    Returns:
        (..., D) in their type.
    """
    y: Tensor = _gated_unit(g, u, *act)
    return y


def _forward(g: Tensor, u: Tensor, k: float, a: float) -> Tensor:
    if g.shape != u.shape or g.dtype != u.dtype:
        raise ModelError(
            f"gate {tuple(g.shape)} of {g.dtype} and input {tuple(u.shape)} of {u.dtype}: "
            "expected the same shape and type"
        )
    if native.takes(g):
        return native_elementwise.gated_unit(g, u, k, a)
    wide = g.float()
    return (wide * torch.sigmoid(k * (wide + a * wide**3)) * u.float()).to(g.dtype)


def _backward(dy: Tensor, g: Tensor, u: Tensor, k: float, a: float) -> tuple[Tensor, Tensor]:
    if native.takes(g) and dy.dtype == g.dtype:
        return native_elementwise.gated_unit_backward(dy, g, u, k, a)
    wide, d = g.float(), dy.float()
    s = torch.sigmoid(k * (wide + a * wide**3))
    slope = s + wide * s * (1 - s) * k * (1 + 3 * a * wide.square())
    return (d * u.float() * slope).to(g.dtype), (d * wide * s).to(g.dtype)


def _fake(g: Tensor, u: Tensor, k: float, a: float) -> Tensor:
    return torch.empty_like(g, memory_format=torch.contiguous_format)


def _fake_backward(dy: Tensor, g: Tensor, u: Tensor, k: float, a: float) -> tuple[Tensor, Tensor]:
    made = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (g, u)]
    return made[0], made[1]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, u, *ctx.act = inputs
    ctx.save_for_backward(g, u)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dg, du = _gated_unit_backward(dy, *ctx.saved_tensors, *ctx.act)
    return dg, du, None, None


_gated_unit = define(
    "gated_unit(Tensor g, Tensor u, float k, float a) -> Tensor", _forward, _fake, _gradient, _keep
)
_gated_unit_backward = define(
    "gated_unit_backward(Tensor dy, Tensor g, Tensor u, float k, float a) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)

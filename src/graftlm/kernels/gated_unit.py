"""The gated unit of a feed-forward layer (arXiv 2002.05202) in one pass, and its gradient.

    y = act(g) · u,     act(g) = g · σ(k (g + a g³))

SiLU is k = 1, a = 0. The tanh approximation of GELU is k = 2 √(2/π), a = 0.044715, since
½ (1 + tanh z) = σ(2z). The backward pass needs g and u. Written as separate operations, autograd
keeps act(g) as well.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.operator import Case, Operator
from graftlm.kernels.products import draw

__all__ = ["GELU_TANH", "SILU", "gated_unit"]

SILU = (1.0, 0.0)
GELU_TANH = (2 * math.sqrt(2 / math.pi), 0.044715)


def gated_unit(g: Tensor, u: Tensor, act: tuple[float, float]) -> Tensor:
    """``act(g) · u``; differentiable in both.

    Args:
        g: (..., D), the gate.
        u: (..., D), of the same type.
        act: (k, a): `SILU` or `GELU_TANH`.

    Returns:
        (..., D) in their type.

    Raises:
        ModelError: the two differ in shape or type.
    """
    y: Tensor = _gated_unit(g, u, *act)
    return y


def _check(g: Tensor, u: Tensor, k: float, a: float) -> None:
    if g.shape != u.shape or g.dtype != u.dtype:
        raise ModelError(
            f"gate {tuple(g.shape)} of {g.dtype} and input {tuple(u.shape)} of {u.dtype}: "
            "expected the same shape and type"
        )


def _check_backward(dy: Tensor, g: Tensor, u: Tensor, k: float, a: float) -> None:
    _check(g, u, k, a)
    if dy.shape != g.shape:
        raise ModelError(f"dy has shape {tuple(dy.shape)}: expected {tuple(g.shape)}")


def _reference(g: Tensor, u: Tensor, k: float, a: float) -> Tensor:
    wide = g.float()
    return (wide * torch.sigmoid(k * (wide + a * wide**3)) * u.float()).to(g.dtype)


def _reference_backward(
    dy: Tensor, g: Tensor, u: Tensor, k: float, a: float
) -> tuple[Tensor, Tensor]:
    wide, d = g.float(), dy.float()
    s = torch.sigmoid(k * (wide + a * wide**3))
    slope = s + wide * s * (1 - s) * k * (1 + 3 * a * wide.square())
    return (d * u.float() * slope).to(g.dtype), (d * wide * s).to(g.dtype)


def _fake(g: Tensor, u: Tensor, k: float, a: float) -> Tensor:
    return torch.empty_like(g, memory_format=torch.contiguous_format)


def _fake_backward(dy: Tensor, g: Tensor, u: Tensor, k: float, a: float) -> tuple[Tensor, Tensor]:
    dg, du = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (g, u))
    return dg, du


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, u, *ctx.act = inputs
    ctx.save_for_backward(g, u)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dg, du = _gated_unit_backward(dy, *ctx.saved_tensors, *ctx.act)
    return dg, du, None, None


def _workspace(g: Tensor, *_: Any) -> int:
    """The gate and a few steps of its function, in float32."""
    return 16 * g.numel()


def _cases() -> list[Case]:
    g, u = draw(256, 640), draw(256, 640, seed=1)
    return [
        Case("SiLU", (g, u, *SILU), 1e-5),
        Case("GELU", (g, u, *GELU_TANH), 1e-5),
        Case("SiLU, bfloat16", (g.bfloat16(), u.bfloat16(), *SILU), 1e-2),
    ]


def _backward_cases() -> list[Case]:
    dy, g, u = (draw(256, 640, seed=seed) for seed in range(3))
    narrow = (t.bfloat16() for t in (dy, g, u))
    return [
        Case("SiLU", (dy, g, u, *SILU), 1e-5),
        Case("GELU", (dy, g, u, *GELU_TANH), 1e-5),
        Case("SiLU, bfloat16", (*narrow, *SILU), 1e-2),
    ]


_gated_unit = Operator(
    schema="gated_unit(Tensor g, Tensor u, float k, float a) -> Tensor",
    family="gated_unit",
    check=_check,
    reference=_reference,
    fake=_fake,
    cases=_cases,
    gradient=_gradient,
    keep=_keep,
    workspace=_workspace,
)
_gated_unit_backward = Operator(
    schema="gated_unit_backward(Tensor dy, Tensor g, Tensor u, float k, float a) "
    "-> (Tensor dg, Tensor du)",
    family="gated_unit",
    check=_check_backward,
    reference=_reference_backward,
    fake=_fake_backward,
    cases=_backward_cases,
    workspace=_workspace,
)

"""Rotary position embedding (arXiv 2104.09864) in one pass, and its gradient.

    y₁ = x₁ cos₁ − x₂ sin₁,     y₂ = x₂ cos₂ + x₁ sin₂          x = [x₁, x₂], halves of D
    dx₁ = dy₁ cos₁ + dy₂ sin₂,  dx₂ = dy₂ cos₂ − dy₁ sin₁

Each pair (x₁ᵢ, x₂ᵢ) turns by the angle of its position. With equal halves of cos and of sin, as in
every model, the gradient is the rotation by the negative angle. Written as separate operations, it
reads and writes x ten times instead of twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.operator import Case, Operator
from graftlm.kernels.products import draw

__all__ = ["has_kernel", "rotary"]


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` turned by the angles of its positions; differentiable in ``x`` alone.

    Args:
        x: (B, H, L, D), D even.
        cos: (B or 1, L, D), of any floating-point type.
        sin: (B or 1, L, D).

    Returns:
        (B, H, L, D) in the type of ``x``, its dimensions in memory in the order of those of ``x``.

    Raises:
        ModelError: the shapes do not fit each other.
    """
    y: Tensor = _rotary(x, cos, sin, False)
    return y


def has_kernel(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether a kernel turns ``x``; assumed of every accelerator, also in a plan without one.

    In compiled code for a CPU the compiler makes one.
    """
    if x.device.type != "cpu":
        return True
    return not torch.compiler.is_compiling() and _rotary.has_kernel(x, cos, sin, False)


def _check(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> None:
    fits = x.ndim == 4 and x.shape[-1] % 2 == 0
    if not fits or not cos.shape == sin.shape or cos.shape not in _angles_of(x):
        raise ModelError(
            f"x is {tuple(x.shape)}, cos {tuple(cos.shape)} and sin {tuple(sin.shape)}: expected "
            "(B, H, L, D) with an even D, and (B or 1, L, D) twice"
        )


def _angles_of(x: Tensor) -> tuple[tuple[int, ...], ...]:
    rows, _, length, width = x.shape
    return (rows, length, width), (1, length, width)


def _reference(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    half = x.shape[-1] // 2
    left, right = x[..., :half].float(), x[..., half:].float()
    (c1, c2), (s1, s2) = (t[:, None].float().chunk(2, -1) for t in (cos, sin))
    y = torch.empty_like(x)
    if back:
        y[..., :half] = left * c1 + right * s2
        y[..., half:] = right * c2 - left * s1
    else:
        y[..., :half] = left * c1 - right * s1
        y[..., half:] = right * c2 + left * s2
    return y


def _fake(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return _rotary(dy, *ctx.saved_tensors, not ctx.back), None, None, None


def _workspace(x: Tensor, *_: Any) -> int:
    """X in float32, and two products of half of it."""
    return 8 * x.numel()


def _cases() -> list[Case]:
    x = draw(2, 128, 6, 64).transpose(1, 2)  # as a projection leaves it
    angles = torch.arange(128.0)[:, None] * 10000 ** (-torch.arange(32) / 32)
    cos, sin = (t.repeat(1, 2)[None] for t in (angles.cos(), angles.sin()))
    narrow = (t.bfloat16() for t in (x, cos, sin))
    return [
        Case("", (x, cos, sin, False), 1e-5),
        Case("back", (x, cos.expand(2, -1, -1), sin.expand(2, -1, -1), True), 1e-5),
        Case("bfloat16", (*narrow, False), 1e-2),
    ]


_rotary = Operator(
    schema="rotary(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor",
    family="rotary",
    check=_check,
    reference=_reference,
    fake=_fake,
    cases=_cases,
    gradient=_gradient,
    keep=_keep,
    workspace=_workspace,
)

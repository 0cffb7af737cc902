"""RMS norm in one pass (arXiv 1910.07467), and its gradient.

    y  = x · r · (w + c),     r = 1 / √(mean(x²) + ε)
    dx = r · (g − x · r² · mean(g · x)),     g = dy · (w + c)

c is 0, or 1 in models that store the weight's distance from one (Gemma). The sums are float32 and
only y is rounded; kept for the backward pass are x, as it is, and r, one number a row. Written as
separate operations, a bfloat16 x is kept three times in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels import native, native_elementwise
from graftlm.kernels.register import define

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, shift: float, eps: float) -> Tensor:
    """The norm of the last dimension.

    Args:
        x: (..., D).
        weight: (D,), of any floating-point type.
        shift: c, added to the weight.
        eps: ε.

    Returns:
        (..., D) in the type of ``x``.
    """
    y: Tensor = _rms_norm(x, weight, shift, eps)[0]
    return y


def _forward(x: Tensor, weight: Tensor, shift: float, eps: float) -> tuple[Tensor, Tensor]:
    if weight.shape != x.shape[-1:]:
        raise ModelError(f"weight has shape {tuple(weight.shape)}: expected ({x.shape[-1]},)")
    if native.takes(x) and native.takes(weight):
        return native_elementwise.rms_norm(x, weight, shift, eps)
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    return (wide * rstd[..., None] * (weight.float() + shift)).to(x.dtype), rstd


def _backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, shift: float) -> Tensor:
    if native.takes(x) and native.takes(weight) and dy.dtype == x.dtype:
        return native_elementwise.rms_norm_backward(dy, x, weight, rstd, shift)
    wide, r = x.float(), rstd[..., None]
    g = dy.float() * (weight.float() + shift)
    pull = (g * wide).mean(-1, keepdim=True) * r.square()
    return (r * (g - wide * pull)).to(x.dtype)


def _fake(x: Tensor, weight: Tensor, shift: float, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
        x.shape[:-1], dtype=torch.float32
    )


def _fake_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, shift: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, ctx.shift, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, rstd = ctx.saved_tensors
    dx = dweight = None
    if dy is not None and ctx.needs_input_grad[0]:
        dx = _rms_norm_backward(dy, x, weight, rstd, ctx.shift)
    if dy is not None and ctx.needs_input_grad[1]:
        product = dy.float() * x.float() * rstd[..., None]
        dweight = product.flatten(0, -2).sum(0).to(weight.dtype)
    return dx, dweight, None, None


_rms_norm = define(
    "rms_norm(Tensor x, Tensor weight, float shift, float eps) -> (Tensor, Tensor)",
    _forward,
    _fake,
    _gradient,
    _keep,
)
_rms_norm_backward = define(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, float shift) -> Tensor",
    _backward,
    _fake_backward,
)

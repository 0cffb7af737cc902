"""RMS norm in one pass (arXiv 1910.07467), and its gradient.

    y  = x · r · (w + c),     r = 1 / √(mean(x²) + ε)
    dx = r · (g − x · r² · mean(g · x)),     g = dy · (w + c)

c is 0, or 1 in models that store the weight's distance from one (Gemma). The sums are float32 and
only y is rounded. The backward pass needs x, as it is, and r, one number a row. Written as separate
operations, autograd keeps a bfloat16 x three times in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.operator import Case, Operator
from graftlm.kernels.products import draw

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, shift: float, eps: float) -> Tensor:
    """The norm of the last dimension; differentiable in ``x`` and ``weight``.

    Args:
        x: (..., D).
        weight: (D,), of any floating-point type.
        shift: c, added to the weight.
        eps: ε.

    Returns:
        (..., D) in the type of ``x``.

    Raises:
        ModelError: the weight does not fit.
    """
    y: Tensor = _rms_norm(x, weight, shift, eps)[0]
    return y


def _check(x: Tensor, weight: Tensor, *_: Any) -> None:
    if weight.shape != x.shape[-1:]:
        raise ModelError(f"weight has shape {tuple(weight.shape)}: expected ({x.shape[-1]},)")


def _check_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, shift: float) -> None:
    _check(x, weight)
    if dy.shape != x.shape or rstd.shape != x.shape[:-1]:
        raise ModelError(
            f"dy has shape {tuple(dy.shape)} and rstd {tuple(rstd.shape)}: expected "
            f"{tuple(x.shape)} and {tuple(x.shape[:-1])}"
        )


def _reference(x: Tensor, weight: Tensor, shift: float, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    return (wide * rstd[..., None] * (weight.float() + shift)).to(x.dtype), rstd


def _reference_backward(
    dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, shift: float
) -> Tensor:
    wide, r = x.float(), rstd[..., None]
    g = dy.float() * (weight.float() + shift)
    pull = (g * wide).mean(-1, keepdim=True) * r.square()
    return (r * (g - wide * pull)).to(x.dtype)


def _fake(x: Tensor, weight: Tensor, shift: float, eps: float) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(x.shape[:-1], dtype=torch.float32)


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


def _workspace(x: Tensor, *_: Any) -> int:
    """X and what it is multiplied by, in float32."""
    return 8 * x.numel()


def _cases() -> list[Case]:
    x, weight = draw(256, 640), draw(640, seed=1)
    return [
        Case("", (x, weight, 1.0, 1e-6), 1e-5),
        Case("bfloat16", (x.bfloat16(), weight.bfloat16(), 0.0, 1e-6), 1e-2),
    ]


def _backward_cases() -> list[Case]:
    x, weight, dy = draw(256, 640), draw(640, seed=1), draw(256, 640, seed=2)
    rstd = torch.rsqrt(x.square().mean(-1) + 1e-6)
    narrow = (t.bfloat16() for t in (dy, x, weight))
    return [
        Case("", (dy, x, weight, rstd, 1.0), 1e-5),
        Case("bfloat16", (*narrow, rstd, 0.0), 1e-2),
    ]


_rms_norm = Operator(
    schema="rms_norm(Tensor x, Tensor weight, float shift, float eps) -> (Tensor y, Tensor rstd)",
    family="rms_norm",
    check=_check,
    reference=_reference,
    fake=_fake,
    cases=_cases,
    gradient=_gradient,
    keep=_keep,
    workspace=_workspace,
)
_rms_norm_backward = Operator(
    schema="rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, float shift) "
    "-> Tensor",
    family="rms_norm",
    check=_check_backward,
    reference=_reference_backward,
    fake=_fake_backward,
    cases=_backward_cases,
    workspace=_workspace,
)

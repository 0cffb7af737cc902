"""The low-rank product of LoRA (arXiv 2106.09685) as one autograd function, for any base.

It is used if no kernel computes base and update together (`kernels/lora_linear.py`): with dropout,
for GPT-2's `Conv1D`, and on other devices.

    u = x Aᵀ                       (N, r)      the cheap order: r is thin
    y = y₀ + s · u Bᵀ              (N, out)    added in place to the base's output y₀

    ∂L/∂B = s · (∂L/∂y)ᵀ u         [out, r]    v = s · (∂L/∂y) B           (N, r)
    ∂L/∂A = vᵀ x                   [r, in]     ∂L/∂x = v A (+ the base's)  (N, in)

The backward pass needs x in its own type, which other layers keep anyway, and u, which is thin. As
separate operations, autograd would keep a float32 copy of x for every adapter and allocate the
update in addition to y₀. With bfloat16 activations that is most of the memory of a LoRA step.

The factors are multiplied in the type of x if the processor has instructions for it, otherwise in
float32. A, B and their gradients stay float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graftlm._compat.torch_objects import is_view
from graftlm.kernels.factor_gradient import factor_gradient
from graftlm.kernels.lora_linear import factor_type

__all__ = ["add_low_rank"]


def add_low_rank(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """``y + scaling · (x Aᵀ) Bᵀ``, in place if ``y`` may be changed.

    Args:
        y: (..., out), the base's output.
        x: (..., in), the input, in any floating-point type.
        A: [r, in] float32.
        B: [out, r] float32.
        scaling: s.

    Returns:
        (..., out) in the type of ``y``.
    """
    if is_view(y) or (y.is_leaf and y.requires_grad):  # autograd forbids writing to these
        y = y.clone()
    result: Tensor = _AddLowRank.apply(y, x, A, B, scaling)  # type: ignore[no-untyped-call]
    return result


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        factor = factor_type(x)
        rows = x.reshape(-1, x.shape[-1])
        u = rows.to(factor) @ A.to(factor).T
        flat = y.view(-1, y.shape[-1])
        if flat.dtype == factor:
            flat.addmm_(u, B.to(factor).T, alpha=scaling)
        else:
            flat.add_((u @ B.to(factor).T).to(flat.dtype), alpha=scaling)
        ctx.scaling, ctx.factor = scaling, factor
        ctx.save_for_backward(x, u, A, B)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, u, A, B = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1]).to(ctx.factor)
        d = dy.reshape(-1, dy.shape[-1]).to(ctx.factor)
        v = (d @ B.to(ctx.factor)).mul_(ctx.scaling)
        dA = factor_gradient(v, rows).to(A.dtype) if ctx.needs_input_grad[2] else None
        dB = None
        if ctx.needs_input_grad[3]:
            dB = factor_gradient(u, d, ctx.scaling, turned=True).to(B.dtype)
        dx = (v @ A.to(ctx.factor)).to(x.dtype).view_as(x) if ctx.needs_input_grad[1] else None
        return dy, dx, dA, dB, None

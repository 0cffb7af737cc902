"""LoRA beside a frozen weight as one product (arXiv 2106.09685), dense or in 4 bits (2305.14314).

    u = x Aᵀ                       (..., r)     kept for the backward pass: it is thin
    y = x Wᵀ + b + s · u Bᵀ        (..., out)

    v = s · dy B                   (..., r)     dx = dy W + v A     (..., in)
    dA = vᵀ x                      [r, in]      dB = s · dyᵀ u      [out, r]

The kernel packs x, or dy, once for both products, and adds the update in the sums of the frozen
one: as separate operations it costs another pass over y and over dx, and a rounding in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from graftlm.errors import ModelError
from graftlm.kernels import native, reference
from graftlm.kernels.factor_gradient import factor_gradient
from graftlm.kernels.library import WEIGHT, check_factor, compute_type, weight
from graftlm.kernels.native_args import LowRank
from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.kernels.register import define
from graftlm.system import fast_bfloat16

__all__ = ["factor_type", "lora_linear", "nf4_lora_linear"]

Result = tuple[Tensor, Tensor]
FrozenWeight = NF4Weight | Tensor


def factor_type(x: Tensor) -> torch.dtype:
    """The type to multiply thin factors in: 16 bits only where that is not slower than float32."""
    slow = x.device.type == "cpu" and not (x.dtype == torch.bfloat16 and fast_bfloat16())
    return torch.float32 if slow and x.dtype != torch.float64 else x.dtype


def _forward(
    x: Tensor,
    w: FrozenWeight,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    compute: str,
) -> Result:
    check_factor("x", x, w, features=w.shape[1])
    _check_update(w, A, B)
    if bias is not None and (bias.shape != w.shape[:1] or bias.device != w.device):
        raise ModelError(
            f"bias has shape {tuple(bias.shape)} on {bias.device}: expected ({w.shape[0]},) on "
            f"{w.device}"
        )
    if _takes(x, w):
        update = LowRank(A, B, scaling)
        return native.linear(x, w, bias, compute_type(compute, x.dtype), update)
    wide = reference.compute_type(x)
    rows = x.to(wide)
    u = rows @ A.to(wide).T
    if isinstance(w, Tensor):
        y = torch.nn.functional.linear(rows, w.to(wide), None if bias is None else bias.to(wide))
    else:
        y = reference.linear(rows, w, bias)
    _add_product(y, u, B.to(wide).T, scaling)
    return y.to(x.dtype), u.to(x.dtype)


def _backward(
    dy: Tensor, w: FrozenWeight, A: Tensor, B: Tensor, scaling: float, compute: str
) -> Result:
    check_factor("dy", dy, w, features=w.shape[0])
    _check_update(w, A, B)
    if _takes(dy, w):
        update = LowRank(A, B, scaling)
        return native.linear_backward(dy, w, compute_type(compute, dy.dtype), update)
    wide = reference.compute_type(dy)
    rows = dy.to(wide)
    v = scaling * (rows @ B.to(wide))
    dx = rows @ w.to(wide) if isinstance(w, Tensor) else reference.linear_backward(rows, w)
    _add_product(dx, v, A.to(wide), 1.0)
    return dx.to(dy.dtype), v.to(dy.dtype)


def _add_product(y: Tensor, thin: Tensor, factor: Tensor, scaling: float) -> None:
    """``y += scaling · thin · factor`` without another tensor of the size of y."""
    y.view(-1, y.shape[-1]).addmm_(thin.reshape(-1, thin.shape[-1]), factor, alpha=scaling)


def _takes(x: Tensor, w: FrozenWeight) -> bool:
    if isinstance(w, Tensor) and not (native.takes(w) and w.numel()):
        return False
    return native.takes(x)


def _check_update(w: FrozenWeight, A: Tensor, B: Tensor) -> None:
    rank = A.shape[0]
    shapes = A.shape == (rank, w.shape[1]) and B.shape == (w.shape[0], rank)
    if shapes and A.device == B.device == w.device:
        return
    raise ModelError(
        f"the update has A {tuple(A.shape)} on {A.device} and B {tuple(B.shape)} on {B.device}: "
        f"expected (rank, {w.shape[1]}) and ({w.shape[0]}, rank) on {w.device}, for a weight of "
        f"shape {tuple(w.shape)}"
    )


def _gradients(
    ctx: Any, dy: Tensor | None, backward: Callable[..., Result]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """For x, the bias, A and B; ``backward(dy, *frozen, A, B)`` gives dx and v."""
    dx = dbias = dA = dB = None
    if dy is None:
        return None, None, None, None
    x, u, A, B, *frozen = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wants_x, (wants_bias, wants_A, wants_B) = needs[0], needs[-5:-2]
    if wants_x:
        dx, v = backward(dy, *frozen, A, B)
    else:
        factor = factor_type(x)
        v = (dy.to(factor) @ B.to(factor)).mul_(ctx.scaling).to(dy.dtype)
    if wants_A:
        dA = factor_gradient(v, x, compute=ctx.compute).to(A.dtype)
    if wants_B:
        dB = factor_gradient(u, dy, ctx.scaling, True, ctx.compute).to(B.dtype)
    if wants_bias:
        dbias = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_type)
    return dx, dbias, dA, dB


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Result, *frozen: Tensor | None) -> None:
    """Hold on to x and u, and to the frozen weight as it is stored."""
    x, *_, bias, A, B, ctx.scaling, ctx.compute = inputs
    ctx.save_for_backward(x, output[1], A, B, *frozen)
    ctx.bias_type = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


# ---------------------------------------------------------------- over 4 bits

UPDATE = "Tensor A, Tensor B, float scaling, str compute"


def _nf4_forward(x: Tensor, *rest: Any) -> Result:
    *parts, bias, A, B, scaling, compute = rest
    return _forward(x, weight(*parts), bias, A, B, scaling, compute)


def _nf4_backward(dy: Tensor, *rest: Any) -> Result:
    *parts, A, B, scaling, compute = rest
    return _backward(dy, weight(*parts), A, B, scaling, compute)


def _nf4_fake_forward(x: Tensor, *rest: Any) -> Result:
    return _shaped(x, rest[4][0], rest[7])


def _nf4_fake_backward(dy: Tensor, *rest: Any) -> Result:
    return _shaped(dy, rest[4][1], rest[6])


def _nf4_keep(ctx: Any, inputs: tuple[Any, ...], output: Result) -> None:
    ctx.sizes = inputs[5:7]
    _keep(ctx, inputs, output, *inputs[1:5])


def _nf4_gradient(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    def backward(dy: Tensor, *tensors: Tensor) -> Result:
        *stored, A, B = tensors
        result: Result = _nf4_lora_linear_backward(
            dy, *stored, *ctx.sizes, A, B, ctx.scaling, ctx.compute
        )
        return result

    dx, *rest = _gradients(ctx, dy, backward)
    return dx, None, None, None, None, None, None, *rest, None, None


# ---------------------------------------------------------------- over a dense weight


def _fake_forward(x: Tensor, weight: Tensor, bias: Any, A: Tensor, *_: Any) -> Result:
    return _shaped(x, weight.shape[0], A)


def _fake_backward(dy: Tensor, weight: Tensor, A: Tensor, *_: Any) -> Result:
    return _shaped(dy, weight.shape[1], A)


def _dense_keep(ctx: Any, inputs: tuple[Any, ...], output: Result) -> None:
    _keep(ctx, inputs, output, inputs[1])


def _dense_gradient(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    def backward(dy: Tensor, *tensors: Tensor) -> Result:
        result: Result = _lora_linear_backward(dy, *tensors, ctx.scaling, ctx.compute)
        return result

    dx, *rest = _gradients(ctx, dy, backward)
    return dx, None, *rest, None, None


def _shaped(x: Tensor, features: int, A: Tensor) -> Result:
    return x.new_empty((*x.shape[:-1], features)), x.new_empty((*x.shape[:-1], A.shape[0]))


_nf4_lora_linear_backward = define(
    f"nf4_lora_linear_backward(Tensor dy, {WEIGHT}, {UPDATE}) -> (Tensor dx, Tensor v)",
    _nf4_backward,
    _nf4_fake_backward,
)
nf4_lora_linear = define(
    f"nf4_lora_linear(Tensor x, {WEIGHT}, Tensor? bias, {UPDATE}) -> (Tensor y, Tensor u)",
    _nf4_forward,
    _nf4_fake_forward,
    _nf4_gradient,
    _nf4_keep,
)
_lora_linear_backward = define(
    f"lora_linear_backward(Tensor dy, Tensor weight, {UPDATE}) -> (Tensor dx, Tensor v)",
    _backward,
    _fake_backward,
)
lora_linear = define(
    f"lora_linear(Tensor x, Tensor weight, Tensor? bias, {UPDATE}) -> (Tensor y, Tensor u)",
    _forward,
    _fake_forward,
    _dense_gradient,
    _dense_keep,
)


@register_flop_formula(
    [
        torch.ops.graftlm.nf4_lora_linear,
        torch.ops.graftlm.nf4_lora_linear_backward,
        torch.ops.graftlm.lora_linear,
        torch.ops.graftlm.lora_linear_backward,
    ]
)
def _flops(x_shape: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """The frozen product, and the two thin ones beside it."""
    A_shape, B_shape = rest[-4], rest[-3]
    rank, in_features = A_shape
    out_features = B_shape[0]
    per_row = out_features * in_features + rank * (out_features + in_features)
    return int(2 * math.prod(x_shape[:-1]) * per_row)

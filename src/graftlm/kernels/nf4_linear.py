"""The product of an input with a weight stored in 4 bits (QLoRA, arXiv 2305.14314, equation 5).

    y  = x Wᵀ + b     x (..., in)   → y (..., out)
    dx = dy W         dy (..., out) → dx (..., in);  W gets no gradient

The backward pass reads the 4-bit weight again. Keeping a dequantised one would take the memory that
QLoRA saves. The reference is `graftlm.kernels.reference.nf4_linear`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.kernels.operator import Case, Operator, Timing
from graftlm.kernels.products import (
    WEIGHT,
    Compute,
    check_factor,
    check_stored,
    draw,
    rows_of,
    stored_case,
    weight,
    weight_arguments,
)
from graftlm.kernels.reference import nf4_linear as reference

__all__ = ["linear"]


def linear(
    x: Tensor, w4: NF4Weight, bias: Tensor | None = None, compute: Compute = "auto"
) -> Tensor:
    """``y = x Wᵀ + b``; differentiable in ``x`` and ``b``, never in W.

    Args:
        x: (..., in_features).
        w4: the frozen weight (out_features, in_features) in NF4.
        bias: (out_features,) or ``None``.
        compute: the arithmetic, forward and backward; see `graftlm.kernels.products.compute_type`.

    Returns:
        (..., out_features) in the type of ``x``.

    Raises:
        ModelError: shapes or devices do not fit, or the weight's parts do not.
    """
    y: Tensor = _linear(x, *weight_arguments(w4), bias, compute)
    return y


def _check(x: Tensor, *rest: Any) -> None:
    codes, shape, bias = rest[0], rest[4], rest[6]
    check_stored(*rest[:6])
    check_factor("x", x, codes.device, shape, features=shape[1])
    if bias is not None and list(bias.shape) != list(shape[:1]):
        raise ModelError(f"bias has shape {tuple(bias.shape)}: expected ({shape[0]},)")


def _check_backward(dy: Tensor, *rest: Any) -> None:
    codes, shape = rest[0], rest[4]
    check_stored(*rest[:6])
    check_factor("dy", dy, codes.device, shape, features=shape[0])


def _reference(x: Tensor, *rest: Any) -> Tensor:
    *parts, bias, _ = rest
    return reference.linear(x, weight(*parts), bias)


def _reference_backward(dy: Tensor, *rest: Any) -> Tensor:
    *parts, _ = rest
    return reference.linear_backward(dy, weight(*parts))


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rest[4][0]))


def _fake_backward(dy: Tensor, *rest: Any) -> Tensor:
    return dy.new_empty((*dy.shape[:-1], rest[4][1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, codes, absmax, nested_absmax, offset, *sizes, bias, compute = inputs
    ctx.save_for_backward(codes, absmax, nested_absmax, offset)
    ctx.sizes, ctx.compute = sizes, compute
    ctx.bias_type = None if bias is None else bias.dtype


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        dx = _linear_backward(dy, *ctx.saved_tensors, *ctx.sizes, ctx.compute)
    if ctx.needs_input_grad[7]:
        dbias = dy.flatten(0, -2).sum(0, dtype=torch.float32).to(ctx.bias_type)
    return dx, None, None, None, None, None, None, dbias, None


def _flops(x: Tensor, *rest: Any) -> int:
    return int(2 * rows_of(x) * math.prod(rest[4]))


def _workspace(x: Tensor, *rest: Any) -> int:
    """A tile of the weight and the input, both in float32."""
    return int(4 * (min(math.prod(rest[4]), reference.tile_elements(x.device)) + x.numel()))


def _cases() -> list[Case]:
    stored = stored_case()
    rows, cols = stored[4]
    x, bias = draw(256, cols, seed=1), draw(rows, seed=2)
    return [
        Case("1 row", (x[:1], *stored, bias, "float32"), 1e-5),
        Case("256 rows", (x, *stored, None, "float32"), 1e-5),
        Case("256 rows, bfloat16x3", (x, *stored, bias, "bfloat16x3"), 1e-4),
        Case("256 rows of bfloat16", (x.bfloat16(), *stored, bias, "bfloat16"), 2e-2),
    ]


def _backward_cases() -> list[Case]:
    stored = stored_case()
    dy = draw(256, stored[4][0], seed=1)
    return [
        Case("256 rows", (dy, *stored, "float32"), 1e-5),
        Case("256 rows of bfloat16", (dy.bfloat16(), *stored, "bfloat16"), 2e-2),
    ]


def _timing(dtype: torch.dtype) -> Timing:
    arguments = (draw(512, 1024, dtype=dtype), *stored_case(1024, 1024), None, "auto")
    return Timing(functools.partial(_linear, *arguments), _flops(*arguments))


_linear_backward = Operator(
    schema=f"nf4_linear_backward(Tensor dy, {WEIGHT}, str compute) -> Tensor",
    family="nf4_linear",
    check=_check_backward,
    reference=_reference_backward,
    fake=_fake_backward,
    cases=_backward_cases,
    flops=_flops,
    workspace=_workspace,
)
_linear = Operator(
    schema=f"nf4_linear(Tensor x, {WEIGHT}, Tensor? bias, str compute) -> Tensor",
    family="nf4_linear",
    check=_check,
    reference=_reference,
    fake=_fake,
    cases=_cases,
    gradient=_gradient,
    keep=_keep,
    flops=_flops,
    workspace=_workspace,
    timing=_timing,
)

"""The operators as PyTorch knows them: schema, checks, shapes without data, gradient, cost.

A stored weight crosses the dispatcher as its tensors and sizes:

    codes, absmax, nested_absmax?, offset?, shape, block_size

On a CPU each operator runs the native kernel if there is one for its types, and the reference
otherwise; on other devices the reference. `graftlm.kernels.ops` is what the layers call.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from graftlm.errors import ModelError
from graftlm.kernels import native, nf4, reference
from graftlm.kernels.nf4.quantize import check, quantize_blocks
from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.kernels.register import define

__all__ = [
    "WEIGHT",
    "Compute",
    "check_factor",
    "compute_type",
    "nf4_dequantize",
    "nf4_linear",
    "nf4_linear_backward",
    "nf4_quantize",
    "weight",
]

Compute = Literal["auto", "float32", "bfloat16", "bfloat16x3"]

WEIGHT = (  # the schema of a stored weight
    "Tensor codes, Tensor absmax, Tensor? nested_absmax, Tensor? offset, int[] shape, "
    "int block_size"
)
_BY_PRECISION = {
    "highest": "float32",
    "high": "bfloat16x3",
    "medium": "bfloat16",
}


def compute_type(compute: str, dtype: torch.dtype) -> str:
    """The arithmetic of a product whose input is of ``dtype``; sums are always float32.

    ``auto``: bfloat16 multiplies as bfloat16. float32 follows `torch.set_float32_matmul_precision`,
    as PyTorch's own products do: ``highest``, the default, is exact float32; ``high`` splits each
    factor in two bfloat16 and takes three products, nearly as exact; ``medium`` rounds to bfloat16.
    Without bfloat16 tiles (AMX) nothing is rounded to bfloat16, which would be slower than float32:
    ``high`` is float32, and so is ``bfloat16`` but for AVX2: there factors become blocks of whole
    numbers of 16 bits, which are faster than float32 and lose an eighth of what rounding to
    bfloat16 does (csrc/gemm_int16.inl says what of numbers that are bfloat16 already).
    """
    if compute != "auto":
        return compute
    if dtype == torch.float32:
        return _BY_PRECISION[torch.get_float32_matmul_precision()]
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def _quantize(w: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    check(w, block_size)
    run = native.quantize if native.takes(w) else quantize_blocks
    return run(w, block_size)


def _dequantize(
    codes: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    offset: Tensor | None,
    shape: list[int],
    block_size: int,
    dtype: torch.dtype,
) -> Tensor:
    w4 = weight(codes, absmax, nested_absmax, offset, shape, block_size)
    run = native.dequantize if native.takes(codes, dtype) else nf4.dequantize
    return run(w4, dtype)


def _linear(
    x: Tensor,
    codes: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    offset: Tensor | None,
    shape: list[int],
    block_size: int,
    bias: Tensor | None,
    compute: str,
) -> Tensor:
    w4 = weight(codes, absmax, nested_absmax, offset, shape, block_size)
    check_factor("x", x, w4, features=shape[1])
    if bias is not None and list(bias.shape) != shape[:1]:
        raise ModelError(f"bias has shape {tuple(bias.shape)}: expected ({shape[0]},)")
    if native.takes(x):
        return native.linear(x, w4, bias, compute_type(compute, x.dtype))[0]
    return reference.linear(x, w4, bias)


def _linear_backward(
    dy: Tensor,
    codes: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    offset: Tensor | None,
    shape: list[int],
    block_size: int,
    compute: str,
) -> Tensor:
    w4 = weight(codes, absmax, nested_absmax, offset, shape, block_size)
    check_factor("dy", dy, w4, features=shape[0])
    if native.takes(dy):
        return native.linear_backward(dy, w4, compute_type(compute, dy.dtype))[0]
    return reference.linear_backward(dy, w4)


def _fake_quantize(w: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    numel = w.numel()
    codes = w.new_empty((numel + 1) // 2, dtype=torch.uint8)
    return codes, w.new_empty(-(-numel // block_size), dtype=torch.float32)


def _fake_dequantize(codes: Tensor, *rest: Any) -> Tensor:
    shape, dtype = rest[3], rest[5]
    return codes.new_empty(shape, dtype=dtype)


def _fake_linear(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rest[4][0]))


def _fake_linear_backward(dy: Tensor, *rest: Any) -> Tensor:
    return dy.new_empty((*dy.shape[:-1], rest[4][1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Hold on to the 4-bit weight; a dequantised one would be the memory QLoRA saves."""
    _, codes, absmax, nested_absmax, offset, *sizes, bias, compute = inputs
    ctx.save_for_backward(codes, absmax, nested_absmax, offset)
    ctx.sizes, ctx.compute = sizes, compute
    ctx.bias_type = None if bias is None else bias.dtype


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        parts = (*ctx.saved_tensors, *ctx.sizes)
        dx = nf4_linear_backward(dy, *parts, ctx.compute)
    if ctx.needs_input_grad[7]:
        dbias = dy.flatten(0, -2).sum(0, dtype=torch.float32).to(ctx.bias_type)
    return dx, None, None, None, None, None, None, dbias, None


nf4_quantize = define(
    "nf4_quantize(Tensor w, int block_size) -> (Tensor, Tensor)",
    _quantize,
    _fake_quantize,
)
nf4_dequantize = define(
    f"nf4_dequantize({WEIGHT}, ScalarType dtype) -> Tensor",
    _dequantize,
    _fake_dequantize,
)
nf4_linear = define(
    f"nf4_linear(Tensor x, {WEIGHT}, Tensor? bias, str compute) -> Tensor",
    _linear,
    _fake_linear,
    _gradient,
    _keep,
)
nf4_linear_backward = define(
    f"nf4_linear_backward(Tensor dy, {WEIGHT}, str compute) -> Tensor",
    _linear_backward,
    _fake_linear_backward,
)


@register_flop_formula([torch.ops.graftlm.nf4_linear, torch.ops.graftlm.nf4_linear_backward])
def _product_flops(x_shape: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    rows = math.prod(x_shape[:-1])
    return int(2 * rows * math.prod(rest[4]))


def weight(
    codes: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    offset: Tensor | None,
    shape: list[int],
    block_size: int,
) -> NF4Weight:
    """The stored weight from what crossed the dispatcher."""
    return NF4Weight(codes, absmax, nested_absmax, offset, tuple(shape), torch.float32, block_size)


def check_factor(name: str, factor: Tensor, w: NF4Weight | Tensor, features: int) -> None:
    """Refuse what cannot be multiplied by the weight."""
    if factor.ndim and factor.shape[-1] == features and factor.device == w.device:
        return
    raise ModelError(
        f"{name} has shape {tuple(factor.shape)} on {factor.device}: expected (..., {features}) on "
        f"{w.device}, for a weight of shape {tuple(w.shape)}"
    )

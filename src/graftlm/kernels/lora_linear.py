"""LoRA and a frozen weight, dense or in 4 bits, in one product (arXiv 2106.09685, 2305.14314).

    u = x Aᵀ                       (..., r)     kept for the backward pass: it is thin
    y = x Wᵀ + b + s · u Bᵀ        (..., out)

    v = s · dy B                   (..., r)     dx = dy W + v A     (..., in)
    dA = vᵀ x                      [r, in]      dB = s · dyᵀ u      [out, r]

A kernel packs x, or dy, once for both products, and adds the update in the sums of the frozen
product. As separate operations, LoRA costs another pass over y and over dx, and a rounding between.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.factor_gradient import factor_gradient
from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.kernels.operator import Case, Operator
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
from graftlm.kernels.reference import lora_linear as reference
from graftlm.kernels.reference.nf4_linear import tile_elements
from graftlm.system import fast_bfloat16

__all__ = ["factor_type", "has_dense_kernel", "lora_linear"]

Result = tuple[Tensor, Tensor]
UPDATE = "Tensor A, Tensor B, float scaling, str compute"


def lora_linear(
    x: Tensor,
    w: NF4Weight | Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    compute: Compute = "auto",
) -> Tensor:
    """``y = x Wᵀ + b + scaling · (x Aᵀ) Bᵀ``; differentiable in all but W.

    Args:
        x: (..., in_features).
        w: the frozen weight (out_features, in_features), in NF4 or dense.
        bias: (out_features,) or ``None``.
        A: [rank, in_features].
        B: [out_features, rank].
        scaling: the factor of the update.
        compute: the arithmetic, forward and backward; see `graftlm.kernels.products.compute_type`.

    Returns:
        (..., out_features) in the type of ``x``.

    Raises:
        ModelError: shapes or devices do not fit, or the weight's parts do not.
    """
    rest = (bias, A, B, scaling, compute)
    if isinstance(w, Tensor):
        y: Tensor = _dense(x, w, *rest)[0]
    else:
        y = _stored(x, *weight_arguments(w), *rest)[0]
    return y


def has_dense_kernel(x: Tensor, w: Tensor, A: Tensor, B: Tensor) -> bool:
    """Whether a kernel multiplies ``x`` by a dense weight and an update together."""
    return _dense.has_kernel(x, w, None, A, B, 1.0, "auto")


def factor_type(x: Tensor) -> torch.dtype:
    """The type for products of thin factors: 16 bits only if that is not slower than float32."""
    slow = x.device.type == "cpu" and not (x.dtype == torch.bfloat16 and fast_bfloat16())
    return torch.float32 if slow and x.dtype != torch.float64 else x.dtype


@dataclasses.dataclass(frozen=True)
class _Form:
    """How an operator is given a frozen weight: as several arguments, tensors first.

    Attributes:
        name: of the operator.
        schema: of these arguments.
        count: how many they are.
        tensors: how many of them are tensors.
        shape: (out_features, in_features) from them.
        check: raises unless they fit each other.
        weight: the weight from them.
        example: such arguments, for a case.
    """

    name: str
    schema: str
    count: int
    tensors: int
    shape: Callable[[Sequence[Any]], Sequence[int]]
    check: Callable[..., None]
    weight: Callable[..., NF4Weight | Tensor]
    example: Callable[[], tuple[Any, ...]]


def _operator(form: _Form) -> Operator:
    """The operator over one form of frozen weight, and the one of its backward pass."""
    count = form.count

    def check(x: Tensor, *rest: Any) -> None:
        form.check(*rest[:count])
        device, shape, (bias, A, B) = rest[0].device, form.shape(rest), rest[count : count + 3]
        check_factor("x", x, device, shape, features=shape[1])
        _check_update(device, shape, bias, A, B)

    def check_backward(dy: Tensor, *rest: Any) -> None:
        form.check(*rest[:count])
        device, shape, (A, B) = rest[0].device, form.shape(rest), rest[count : count + 2]
        check_factor("dy", dy, device, shape, features=shape[0])
        _check_update(device, shape, None, A, B)

    def run_reference(x: Tensor, *rest: Any) -> Result:
        return reference.forward(x, form.weight(*rest[:count]), *rest[count:-1])

    def run_reference_backward(dy: Tensor, *rest: Any) -> Result:
        return reference.backward(dy, form.weight(*rest[:count]), *rest[count:-1])

    def fake(x: Tensor, *rest: Any) -> Result:
        return _shaped(x, form.shape(rest)[0], rest[count + 1])

    def fake_backward(dy: Tensor, *rest: Any) -> Result:
        return _shaped(dy, form.shape(rest)[1], rest[count])

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Result) -> None:
        """Keep x and u, and the frozen weight as it is stored."""
        x, *frozen = inputs[: count + 1]
        bias, A, B, ctx.scaling, ctx.compute = inputs[count + 1 :]
        read = x if A.requires_grad else x.new_empty(0)  # only dA needs the values of x
        ctx.save_for_backward(read, output[1], A, B, *frozen[: form.tensors])
        ctx.sizes = frozen[form.tensors :]
        ctx.bias_type = None if bias is None else bias.dtype
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
        dx, *others = (None,) * 4 if dy is None else _gradients(ctx, dy, backward)
        return dx, *(None,) * count, *others, None, None

    def cases(backwards: bool = False) -> list[Case]:
        frozen = form.example()
        rows, cols = form.shape(frozen)
        x = draw(256, rows if backwards else cols, seed=1)
        bias: tuple[Any, ...] = () if backwards else (draw(rows, seed=4),)
        update = (draw(8, cols, seed=2), draw(rows, 8, seed=3), 0.5)
        return [
            Case("", (x, *frozen, *bias, *update, "float32"), 1e-5),
            Case("bfloat16", (x.bfloat16(), *frozen, *bias, *update, "bfloat16"), 2e-2),
        ]

    backward = Operator(
        schema=f"{form.name}_backward(Tensor dy, {form.schema}, {UPDATE}) -> (Tensor dx, Tensor v)",
        family="nf4_linear",  # one tile product multiplies stored and dense weights
        check=check_backward,
        reference=run_reference_backward,
        fake=fake_backward,
        cases=functools.partial(cases, backwards=True),
        flops=_flops,
        workspace=_workspace,
    )
    return Operator(
        schema=f"{form.name}(Tensor x, {form.schema}, Tensor? bias, {UPDATE}) "
        "-> (Tensor y, Tensor u)",
        family="nf4_linear",
        check=check,
        reference=run_reference,
        fake=fake,
        cases=cases,
        gradient=gradient,
        keep=keep,
        flops=_flops,
        workspace=_workspace,
    )


def _check_matrix(w: Tensor) -> None:
    if w.ndim != 2:
        raise ModelError(f"weight has shape {tuple(w.shape)}: expected (out, in)")


def _check_update(
    device: torch.device, shape: Sequence[int], bias: Tensor | None, A: Tensor, B: Tensor
) -> None:
    out_features, in_features = shape
    rank = A.shape[0]
    shapes = A.shape == (rank, in_features) and B.shape == (out_features, rank)
    if not shapes or not A.device == B.device == device:
        raise ModelError(
            f"the update has A {tuple(A.shape)} on {A.device} and B {tuple(B.shape)} on "
            f"{B.device}: expected (rank, {in_features}) and ({out_features}, rank) on {device}, "
            f"for a weight of shape {tuple(shape)}"
        )
    if bias is not None and (bias.shape != (out_features,) or bias.device != device):
        raise ModelError(
            f"bias has shape {tuple(bias.shape)} on {bias.device}: expected ({out_features},) on "
            f"{device}"
        )


def _gradients(
    ctx: Any, dy: Tensor, backward: Callable[..., Result]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """For x, the bias, A and B."""
    dx = dbias = dA = dB = None
    x, u, A, B, *frozen = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wants_x, (wants_bias, wants_A, wants_B) = needs[0], needs[-5:-2]
    if wants_x:
        dx, v = backward(dy, *frozen, *ctx.sizes, A, B, ctx.scaling, ctx.compute)
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


def _shaped(x: Tensor, features: int, A: Tensor) -> Result:
    return x.new_empty((*x.shape[:-1], features)), x.new_empty((*x.shape[:-1], A.shape[0]))


def _flops(x: Tensor, *rest: Any) -> int:
    """The frozen product and the two thin ones."""
    A, B = rest[-4], rest[-3]
    rank, in_features = A.shape
    out_features = B.shape[0]
    per_row = out_features * in_features + rank * (out_features + in_features)
    return int(2 * rows_of(x) * per_row)


def _workspace(x: Tensor, *rest: Any) -> int:
    """The input, the result and, of the weight, a tile or all of it, in float32."""
    A, B = rest[-4], rest[-3]
    features = A.shape[1] * B.shape[0]
    stored = not rest[0].dtype.is_floating_point
    part = min(features, tile_elements(x.device)) if stored else features
    return int(4 * (part + rows_of(x) * (A.shape[1] + B.shape[0])))


_stored = _operator(
    _Form(
        name="nf4_lora_linear",
        schema=WEIGHT,
        count=6,
        tensors=4,
        shape=lambda parts: parts[4],
        check=check_stored,
        weight=weight,
        example=stored_case,
    )
)
_dense = _operator(
    _Form(
        name="lora_linear",
        schema="Tensor weight",
        count=1,
        tensors=1,
        shape=lambda parts: parts[0].shape,
        check=_check_matrix,
        weight=lambda dense: dense,
        example=lambda: (draw(320, 640),),
    )
)

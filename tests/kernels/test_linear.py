"""The products against float64 truth and the dense product, at every level."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftlm.kernels import nf4, ops
from graftlm.kernels.products import weight_arguments

pytestmark = pytest.mark.usefixtures("level")

# Whole blocks and groups, K not a multiple of the block, odd K, N = 1, one column, many tiles.
SHAPES = ((96, 640), (130, 1000), (33, 65), (1, 128), (5, 1), (48, 96), (7, 4160), (420, 200))
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 70)
HALF_ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 0.0}


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(result: Tensor, x: Tensor, w: Tensor, bias: Tensor | None = None) -> float:
    """Error of ``x wᵀ + bias``, over the size such a sum of independent terms would have."""
    truth = torch.nn.functional.linear(
        x.double(), w.double(), None if bias is None else bias.double()
    )
    size = torch.nn.functional.linear(x.double() ** 2, w.double() ** 2).sqrt()
    return float((result.double() - truth).norm() / size.norm().clamp(min=1e-30))


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_no_worse_than_that_of_the_dense_product(
    shape: tuple[int, int], double_quant: bool
) -> None:
    out_features, in_features = shape
    w4 = nf4.quantize(draw(shape, 0), 64, double_quant)
    w, bias = nf4.dequantize(w4), draw((out_features,), 1)
    for rows in ROWS:
        x = draw((rows, in_features), rows)
        dense = torch.nn.functional.linear(x, w, bias)
        ours = ops.linear(x, w4, bias)
        assert error(ours, x, w, bias) <= 1.5 * error(dense, x, w, bias) + 3e-7
        dy = draw((rows, out_features), rows)
        dx = torch.ops.graftlm.nf4_linear_backward(dy, *weight_arguments(w4), "float32")
        assert error(dx, dy, w.T) <= 1.5 * error(dy @ w, dy, w.T) + 3e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("compute", ["float32", "bfloat16x3", "bfloat16"])
def test_each_arithmetic_keeps_its_promise(compute: ops.Compute, dtype: torch.dtype) -> None:
    bound = {"float32": 1e-6, "bfloat16x3": 2e-5, "bfloat16": 5e-3}[compute]
    for shape, rows in itertools.product(SHAPES, (1, 8, 9, 40)):
        w4 = nf4.quantize(draw(shape, 0))
        w, x = nf4.dequantize(w4), draw((rows, shape[1]), 1, dtype)
        y = ops.linear(x, w4, compute=compute)
        assert y.dtype == dtype
        assert error(y, x, w) <= bound + HALF_ROUNDING[dtype]
        dy = draw((rows, shape[0]), 2, dtype)
        dx = torch.ops.graftlm.nf4_linear_backward(dy, *weight_arguments(w4), compute)
        assert dx.dtype == dtype
        assert error(dx, dy, w.T) <= bound + HALF_ROUNDING[dtype]


@pytest.mark.parametrize("block_size", [32, 128, 512, 4096])
def test_every_block_size_multiplies(block_size: int) -> None:
    for shape, rows in itertools.product(((40, 8192), (33, 4096), (9, 608)), (1, 8, 12)):
        w4 = nf4.quantize(draw(shape, 0), block_size)
        x = draw((rows, shape[1]), 1)
        assert error(ops.linear(x, w4), x, nf4.dequantize(w4)) < 1e-6


@pytest.mark.parametrize("rows", [1, 5, 8, 13, 100])
@pytest.mark.parametrize("compute", ["float32", "bfloat16", "bfloat16x3"])
def test_one_and_two_threads_agree_to_the_bit(
    rows: int, compute: ops.Compute, on_threads: Callable[..., list[Any]]
) -> None:
    w4 = nf4.quantize(draw((700, 1344), 0))

    def work() -> tuple[Tensor, Tensor | None, Tensor]:
        x = draw((rows, 1344), 1).requires_grad_()
        y = ops.linear(x, w4, compute=compute)
        y.backward(draw((rows, 700), 2))
        return y, x.grad, ops.quantize(draw((700, 1344), 0), 64, False).codes

    for one, two in zip(*on_threads(work), strict=True):
        assert torch.equal(one, two)


def test_gradients_are_those_of_the_dense_layer() -> None:
    w4 = nf4.quantize(draw((48, 100), 0))
    for rows in ((3,), (2, 7), (2, 3, 4)):
        bias = draw((48,), 1).requires_grad_()
        x, dy = draw((*rows, 100), 2).requires_grad_(), draw((*rows, 48), 3)
        ops.linear(x, w4, bias).backward(dy)
        ours = x.grad, bias.grad
        x.grad = bias.grad = None
        torch.nn.functional.linear(x, nf4.dequantize(w4), bias).backward(dy)
        for a, b in zip(ours, (x.grad, bias.grad), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leading", [(), (0,), (2, 0), (1,), (2, 3)], ids=str)
def test_leading_dimensions_and_empty_batches(leading: tuple[int, ...]) -> None:
    w4 = nf4.quantize(draw((24, 64), 0))
    x = draw((*leading, 64), 1).requires_grad_()
    y = ops.linear(x, w4)
    assert y.shape == (*leading, 24)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_the_forward_keeps_no_dense_weight() -> None:
    w4 = nf4.quantize(draw((512, 512), 0))
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.linear(draw((4, 512), 1).requires_grad_(), w4)
    assert sum(tensor.nbytes for tensor in kept) <= w4.nbytes


def test_float32_follows_the_precision_set_for_pytorch() -> None:
    w4, x = nf4.quantize(draw((64, 256), 0)), draw((32, 256), 1)
    try:
        for precision, compute in (("medium", "bfloat16"), ("high", "bfloat16x3")):
            torch.set_float32_matmul_precision(precision)
            expected = ops.linear(x, w4, compute=compute)  # type: ignore[arg-type]
            assert torch.equal(ops.linear(x, w4), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


@settings(derandomize=True, deadline=None, max_examples=80)
@given(data=st.data())
def test_any_shape_stride_and_type(data: st.DataObject) -> None:
    out_features, in_features = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 400))
    rows, step = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    block_size = data.draw(st.sampled_from([32, 64, 128]))
    w4 = nf4.quantize(draw((out_features, in_features), 0), block_size, data.draw(st.booleans()))
    x = draw((rows * step, in_features * step), 1, dtype)[::step, ::step].requires_grad_()
    y = ops.linear(x, w4, compute="float32")
    w = nf4.dequantize(w4)
    assert error(y.detach(), x.detach(), w) <= 1e-6 + HALF_ROUNDING[dtype]
    dy = draw((out_features, rows), 2, dtype).T
    (dx,) = torch.autograd.grad(y, x, dy)
    assert error(dx, dy, w.T) <= 1e-6 + HALF_ROUNDING[dtype]

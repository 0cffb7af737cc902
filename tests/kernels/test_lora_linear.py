"""The product with an update in the same sums, against float64; over 4 bits and dense weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels import nf4, ops
from graftlm.kernels.nf4.weight import NF4Weight

pytestmark = pytest.mark.usefixtures("level")

SHAPES = ((96, 640), (130, 1000), (33, 65), (1, 128), (5, 1), (420, 200))
STORED = ("nf4", torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 5e-6}


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def frozen(shape: tuple[int, int], stored: str | torch.dtype) -> tuple[NF4Weight | Tensor, Tensor]:
    """A weight as it is stored, and in float64."""
    if isinstance(stored, torch.dtype):
        w = draw(shape, 0, stored)
        return w, w.double()
    w4 = nf4.quantize(draw(shape, 0))
    return w4, nf4.dequantize(w4).double()


def gradients(y: Tensor, wanted: list[Tensor], dy: Tensor) -> list[Tensor]:
    return [y.detach(), *torch.autograd.grad(y, wanted, dy)]


def compare(
    shape: tuple[int, int], rows: int, rank: int, stored: str | torch.dtype, dtype: torch.dtype
) -> None:
    w, truth = frozen(shape, stored)
    x, dy = draw((rows, shape[1]), 1, dtype), draw((rows, shape[0]), 2, dtype)
    A, B, bias = draw((rank, shape[1]), 3), draw((shape[0], rank), 4), draw((shape[0],), 5)
    ours = [t.clone().requires_grad_() for t in (x, A, B, bias)]
    y = ops.lora_linear(ours[0], w, ours[3], ours[1], ours[2], 0.5)
    exact = [t.double().requires_grad_() for t in (x, A, B, bias)]
    wanted = exact[0] @ truth.T + 0.5 * (exact[0] @ exact[1].T) @ exact[2].T + exact[3]
    for result, expected in zip(
        gradients(y, ours, dy), gradients(wanted, exact, dy.double()), strict=True
    ):
        size = expected.norm().clamp(min=1e-30)
        assert float((result.double() - expected).norm() / size) <= ROUNDING[dtype]


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients(shape: tuple[int, int], stored: str | torch.dtype) -> None:
    for rows, rank in itertools.product((1, 8, 9, 40), (1, 8, 33)):
        compare(shape, rows, rank, stored, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_activations_of_16_bits(stored: str | torch.dtype, dtype: torch.dtype) -> None:
    for rows in (5, 40):
        compare((96, 640), rows, 16, stored, dtype)


def test_more_rows_than_are_packed_at_a_time() -> None:
    compare((48, 96), 1100, 8, "nf4", torch.float32)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 150), st.integers(1, 400)),
    rows=st.integers(1, 60),
    rank=st.integers(1, 80),
    stored=st.sampled_from(STORED),
)
def test_any_shape(shape: tuple[int, int], rows: int, rank: int, stored: str | torch.dtype) -> None:
    compare(shape, rows, rank, stored, torch.float32)


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "bfloat16x3"])
@pytest.mark.parametrize("rows", [5, 100])
def test_one_and_two_threads_agree_to_the_bit(
    rows: int, compute: ops.Compute, on_threads: Callable[..., list[Any]]
) -> None:
    w4 = nf4.quantize(draw((700, 1344), 0))
    A, B = draw((16, 1344), 2), draw((700, 16), 3)

    def work() -> list[Tensor]:
        x = draw((rows, 1344), 1).requires_grad_()
        y = ops.lora_linear(x, w4, None, A, B, 2.0, compute)
        return gradients(y, [x], draw((rows, 700), 4))

    for one, two in zip(*on_threads(work), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("stored", ["nf4", torch.bfloat16], ids=str)
def test_an_input_that_needs_no_gradient(stored: str | torch.dtype) -> None:
    """The first layer's: the factors' gradients are the same."""
    w, _ = frozen((48, 100), stored)
    A, B = draw((8, 100), 1).requires_grad_(), draw((48, 8), 2).requires_grad_()
    grads = []
    for needed in (True, False):
        x = draw((2, 20, 100), 3).requires_grad_(needed)
        y = ops.lora_linear(x, w, None, A, B, 2.0)
        grads.append(torch.autograd.grad(y, [A, B], draw((2, 20, 48), 4)))
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stored", ["nf4", torch.float32], ids=str)
@pytest.mark.parametrize("leading", [(), (0,), (2, 0), (2, 3)], ids=str)
def test_leading_dimensions_and_empty_batches(
    leading: tuple[int, ...], stored: str | torch.dtype
) -> None:
    w, _ = frozen((24, 64), stored)
    x = draw((*leading, 64), 1).requires_grad_()
    A, B = draw((4, 64), 2).requires_grad_(), draw((24, 4), 3).requires_grad_()
    y = ops.lora_linear(x, w, None, A, B, 1.0)
    assert y.shape == (*leading, 24)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert A.grad is not None
    assert B.grad is not None


def test_keeps_the_input_and_little_else() -> None:
    w4 = nf4.quantize(draw((512, 512), 0))
    x = draw((64, 512), 1).requires_grad_()
    A, B = draw((8, 512), 2).requires_grad_(), draw((512, 8), 3).requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.lora_linear(x, w4, None, A, B, 1.0)
    thin = 64 * 8 * 4
    assert sum(kept.values()) <= w4.nbytes + x.nbytes + A.nbytes + B.nbytes + thin


def test_factors_of_another_shape_are_refused() -> None:
    w4 = nf4.quantize(draw((24, 64), 0))
    with pytest.raises(ModelError, match=r"A \(4, 63\).*expected \(rank, 64\)"):
        ops.lora_linear(draw((2, 64), 1), w4, None, draw((4, 63), 2), draw((24, 4), 3), 1.0)
    A, B = draw((4, 64), 2), draw((24, 4), 3)
    with pytest.raises(ModelError, match=r"bias has shape \(23,\).*expected \(24,\)"):
        ops.lora_linear(draw((2, 64), 1), w4, draw((23,), 4), A, B, 1.0)
    with pytest.raises(ModelError, match=r"x has shape"):
        ops.lora_linear(draw((2, 60), 1), w4, None, draw((4, 64), 2), draw((24, 4), 3), 1.0)

"""RMS norm and the gated unit: against float64, on every instruction-set level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.gated_unit import GELU_TANH, SILU, gated_unit
from graftlm.kernels.rms_norm import rms_norm

SHAPES = [(1, 1), (3, 7), (2, 5, 64), (17, 640), (0, 8), (1, 33)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6
ACTIVATIONS: dict[str, tuple[tuple[float, float], Callable[[Tensor], Tensor]]] = {
    "silu": (SILU, F.silu),
    "gelu": (GELU_TANH, lambda g: F.gelu(g, approximate="tanh")),
}


def norm_truth(x: Tensor, weight: Tensor, shift: float) -> Tensor:
    x, weight = x.double(), weight.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * (weight + shift)


def close(ours: Tensor, truth: Tensor) -> None:
    """Within one rounding to the type, and float32's own on the way."""
    assert ours.isfinite().all()
    step = torch.finfo(ours.dtype).eps
    torch.testing.assert_close(ours.double(), truth, rtol=step + 1e-5, atol=step / 8 + 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_norm_and_its_gradients_are_those_of_float64(
    level: str, shape: tuple[int, ...], dtype: torch.dtype, shift: float
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype).requires_grad_()
    weight = torch.randn(shape[-1]).to(dtype).requires_grad_()
    dy = torch.randn(shape).to(dtype)
    y = rms_norm(x, weight, shift, EPS)
    y.backward(dy)
    wide, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    truth = norm_truth(wide, wide_weight, shift)
    truth.backward(dy.double())
    assert x.grad is not None
    assert weight.grad is not None
    assert wide.grad is not None
    assert wide_weight.grad is not None
    assert y.dtype == x.grad.dtype == weight.grad.dtype == dtype
    close(y, truth.detach())
    close(x.grad, wide.grad)
    torch.testing.assert_close(weight.grad.double(), wide_weight.grad, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gated_unit_and_its_gradients_are_those_of_float64(
    level: str, shape: tuple[int, ...], dtype: torch.dtype, name: str
) -> None:
    act, theirs = ACTIVATIONS[name]
    torch.manual_seed(0)
    g, u = (4 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)
    dy = torch.randn(shape).to(dtype)
    g.requires_grad_()
    u.requires_grad_()
    y = gated_unit(g, u, act)
    y.backward(dy)
    wide_g, wide_u = (t.detach().double().requires_grad_() for t in (g, u))
    truth = theirs(wide_g) * wide_u
    truth.backward(dy.double())
    assert g.grad is not None
    assert u.grad is not None
    assert wide_g.grad is not None
    assert wide_u.grad is not None
    close(y, truth.detach())
    close(g.grad, wide_g.grad)
    close(u.grad, wide_u.grad)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_gate_is_right_at_the_ends_of_its_range(level: str, name: str) -> None:
    act, theirs = ACTIVATIONS[name]
    g = torch.tensor([-1e30, -200.0, -90.0, -20.0, -0.0, 0.0, 20.0, 90.0, 200.0, 1e10])
    y = gated_unit(g, torch.ones_like(g), act)
    torch.testing.assert_close(y, theirs(g.double()).float(), rtol=1e-6, atol=1e-6)
    assert gated_unit(torch.tensor([float("nan")]), torch.ones(1), act).isnan().all()


def test_a_view_that_is_not_contiguous_is_read_as_what_it_shows(level: str) -> None:
    x = torch.randn(6, 4, 32).transpose(0, 1)
    torch.testing.assert_close(
        rms_norm(x, torch.ones(32), 0.0, EPS), rms_norm(x.contiguous(), torch.ones(32), 0.0, EPS)
    )
    torch.testing.assert_close(
        gated_unit(x, x, SILU), gated_unit(x.contiguous(), x.contiguous(), SILU)
    )


def test_one_and_two_threads_give_the_same_bits(
    level: str, on_threads: Callable[..., list[Any]]
) -> None:
    x = torch.randn(333, 640)
    results = on_threads(
        lambda: (rms_norm(x, torch.ones(640), 0.0, EPS), gated_unit(x, x, GELU_TANH))
    )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_operators_pass_opcheck() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    weight = torch.randn(8, requires_grad=True)
    torch.library.opcheck(torch.ops.graftlm.rms_norm, (x, weight, 1.0, EPS))
    torch.library.opcheck(torch.ops.graftlm.gated_unit, (x, x.detach().requires_grad_(), 1.0, 0.0))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"expected \(8,\)"):
        rms_norm(torch.randn(3, 8), torch.ones(4), 0.0, EPS)
    with pytest.raises(ModelError, match="same shape"):
        gated_unit(torch.randn(3, 8), torch.randn(3, 4), SILU)

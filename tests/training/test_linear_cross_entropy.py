from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftlm.errors import RequestError
from graftlm.training.linear_cross_entropy import linear_cross_entropy
from tests.oracles.products import rounds_to_int16

VARIANTS = [
    {},
    {"softcap": 3.0},
    {"logit_scale": 0.25},
    {"softcap": 2.0, "logit_scale": 1.5},
]


def problem(
    n: int = 37, vocabulary: int = 301, dim: int = 24, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(n * 1009 + vocabulary * 31 + dim)
    hidden = torch.randn(n, dim, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, dim, generator=g, dtype=torch.float64).mul(0.6).to(dtype)
    bias = torch.randn(vocabulary, generator=g, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, vocabulary, (n,), generator=g)
    return hidden, weight, bias, targets


def dense(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """The oracle: all logits in memory, PyTorch's own cross-entropy."""
    logits = F.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("train_head", [False, True])
def test_loss_and_gradients_equal_dense_cross_entropy(
    options: dict[str, float], with_bias: bool, train_head: bool
) -> None:
    hidden, weight, bias, targets = problem()
    leaves = [
        hidden.requires_grad_(),
        weight.requires_grad_(train_head),
        bias.requires_grad_(train_head),
    ]
    wanted = [leaf for leaf in leaves if leaf.requires_grad][: 2 + with_bias]
    used_bias = bias if with_bias else None
    expected = dense(hidden, weight, targets, used_bias, **options)
    loss, _ = linear_cross_entropy(hidden, weight, targets, bias=used_bias, tolerance=0, **options)
    torch.testing.assert_close(loss, expected)
    # the factor checks that the incoming gradient is applied
    for got, want in zip(
        torch.autograd.grad(loss * 0.3, wanted),
        torch.autograd.grad(expected * 0.3, wanted),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    n=st.integers(1, 70),
    vocabulary=st.integers(1, 20_000),
    dim=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_odd_shapes_and_types_agree_with_float64(
    n: int, vocabulary: int, dim: int, dtype: torch.dtype
) -> None:
    hidden, weight, bias, targets = problem(n, vocabulary, dim, dtype)
    hidden.requires_grad_()
    loss, statistics = linear_cross_entropy(hidden, weight, targets, bias=bias)
    (grad,) = torch.autograd.grad(loss, hidden)
    truth = hidden.detach().double().requires_grad_()
    expected = dense(truth, weight.double(), targets, bias.double())
    (expected_grad,) = torch.autograd.grad(expected, truth)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    close = 1e-4 if rounds_to_int16(dtype) else 2e-6
    torch.testing.assert_close(loss.double(), expected, rtol=close, atol=close / 2 * n)
    # what was left out, times the largest row, bounds the error; the rest is the type's rounding
    bound = statistics.dropped_mass * weight.double().norm(dim=1).max() * 2
    rounding = torch.finfo(dtype).eps + 1e-5
    error = (grad.double() - expected_grad).norm(dim=1)
    assert (error <= bound + rounding * (1 + expected_grad.norm(dim=1))).all()


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, _, targets = problem(dtype=torch.float32)
    hidden = (hidden * 300).requires_grad_()
    loss, _ = linear_cross_entropy(hidden, weight, targets, tolerance=0)
    (grad,) = torch.autograd.grad(loss, hidden)
    truth = hidden.detach().double().requires_grad_()
    expected = dense(truth, weight.double(), targets)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        grad.double(), torch.autograd.grad(expected, truth)[0], rtol=1e-3, atol=1e-3
    )


def test_tied_weight_receives_its_gradient_in_its_own_type() -> None:
    hidden, weight, _, targets = problem(dtype=torch.bfloat16)
    weight.requires_grad_()
    embedded = F.embedding(targets, weight) + hidden
    loss, _ = linear_cross_entropy(embedded, weight, targets)
    loss.backward()
    truth = weight.detach().double().requires_grad_()
    rounded = (F.embedding(targets, truth) + hidden).to(torch.bfloat16).double()
    embedded64 = F.embedding(targets, truth) + hidden.double()
    dense(embedded64 + (rounded - embedded64).detach(), truth, targets).backward()
    assert weight.grad is not None
    assert truth.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert (weight.grad.double() - truth.grad).norm() < 0.01 * truth.grad.norm()


def test_no_positions_give_zero_loss_and_zero_gradient() -> None:
    hidden, weight, _, targets = problem(n=0)
    hidden.requires_grad_()
    loss, statistics = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.item() == 0
    assert statistics.dropped_mass == 0
    assert hidden.grad is not None
    assert hidden.grad.shape == hidden.shape


def test_without_gradients_nothing_is_kept_for_backward() -> None:
    hidden, weight, _, targets = problem()
    with torch.no_grad():
        loss, _ = linear_cross_entropy(hidden.requires_grad_(), weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, dense(hidden, weight, targets).detach())


def test_every_problem_with_the_arguments_is_named_at_once() -> None:
    hidden, weight, bias, targets = problem()
    with pytest.raises(RequestError) as caught:
        linear_cross_entropy(
            hidden[:, 1:],
            weight,
            targets - 400,
            bias=bias[1:],
            softcap=-1.0,
            tolerance=-1e-6,
        )
    for word in ["hidden (N, D)", "vocabulary", "bias", "softcap", "tolerance"]:
        assert word in str(caught.value)

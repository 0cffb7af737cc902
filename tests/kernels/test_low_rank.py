"""The fused product against autograd on separate operations, in float64 truth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftlm.adapters.lora_linear import LoRALinear
from graftlm.kernels.low_rank import add_low_rank


def plain(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    return y + scaling * (x @ A.T) @ B.T


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    rows=st.integers(0, 9),
    inner=st.integers(1, 70),
    out=st.integers(1, 70),
    rank=st.integers(1, 8),
    batched=st.booleans(),
)
def test_equals_separate_operations_in_value_and_gradient(rows, inner, out, rank, batched):
    torch.manual_seed(rows * 7 + inner)
    shape = (2, rows) if batched else (rows,)
    results = []
    tensors = [
        torch.randn(*size, dtype=torch.float64)
        for size in ((*shape, out), (*shape, inner), (rank, inner), (out, rank))
    ]
    weight = torch.randn(*shape, out, dtype=torch.float64)
    for product in (plain, add_low_rank):
        y, x, A, B = (tensor.clone().requires_grad_() for tensor in tensors)
        result = product(y * 1, x, A, B, 0.7)
        (result * weight).sum().backward()
        results.append([result, y.grad, x.grad, A.grad, B.grad])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_error_is_that_of_the_types(dtype):
    torch.manual_seed(0)
    y, x = torch.randn(33, 48, dtype=dtype), torch.randn(33, 80, dtype=dtype)
    A, B = torch.randn(8, 80, requires_grad=True), torch.randn(48, 8, requires_grad=True)
    result = add_low_rank(y.clone(), x, A, B, 0.5)
    result.float().pow(2).sum().backward()
    A64, B64 = (t.detach().double().requires_grad_() for t in (A, B))
    truth = plain(y.double(), x.double(), A64, B64, 0.5)
    truth.pow(2).sum().backward()
    epsilon = 4 * torch.finfo(dtype).eps
    assert result.dtype == dtype
    for ours, exact in ((result, truth), (A.grad, A64.grad), (B.grad, B64.grad)):
        assert (ours.double() - exact).norm() <= epsilon * exact.norm()
    assert A.grad.dtype == torch.float32


@pytest.mark.parametrize("input_needs_grad", [False, True])
def test_keeps_no_copy_of_the_input(input_needs_grad):
    """Saved for the backward: x itself (same storage), the thin u, A and B."""
    layer = LoRALinear(torch.nn.Linear(64, 96).bfloat16().requires_grad_(False), 4, 8.0)
    x = torch.randn(10, 64, dtype=torch.bfloat16, requires_grad=input_needs_grad)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x * 1 if input_needs_grad else x)
    known = {
        t.untyped_storage().data_ptr() for t in (layer.lora_A, layer.lora_B, layer.base.weight)
    }
    big = [
        t for t in saved if t.numel() >= x.numel() and t.untyped_storage().data_ptr() not in known
    ]
    assert len({t.untyped_storage().data_ptr() for t in big}) == 1
    assert all(t.dtype == torch.bfloat16 for t in big)

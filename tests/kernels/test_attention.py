"""Attention of 16-bit inputs against PyTorch's in float64, values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from graftlm.kernels.attention import attention


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def masks(rows: int, length: int, positions: int) -> list[Tensor | None]:
    seen = torch.rand(rows, 1, length, positions) > 0.3
    seen[..., 0] = True
    return [None, seen, torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (6, 2)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 9), (7, 7), (33, 33), (5, 20)], ids=str)
def test_error_is_that_of_one_rounding(
    dtype: torch.dtype, heads: tuple[int, int], sizes: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    length, positions = sizes
    for mask, causal in itertools.product(masks(2, *sizes), (False, True)):
        if causal and (mask is not None or length != positions):
            continue
        q = draw(2, heads[0], length, 16, dtype=dtype)
        k, v = (draw(2, heads[1], positions, 16, dtype=dtype) for _ in range(2))
        dy = torch.randn(2, heads[0], length, 16).to(dtype)
        y = attention(q, k, v, mask, 0.3, causal)
        assert y.dtype == dtype
        ours = y, *torch.autograd.grad(y, (q, k, v), dy)
        wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
        spread = [t.repeat_interleave(heads[0] // t.shape[1], 1) for t in wide]
        added = mask.double() if mask is not None and mask.dtype != torch.bool else mask
        truth = torch.nn.functional.scaled_dot_product_attention(
            *spread, attn_mask=added, is_causal=causal, scale=0.3
        )
        theirs = truth, *torch.autograd.grad(truth, wide, dy.double())
        for a, b in zip(ours, theirs, strict=True):
            assert (a.double() - b).norm() <= 2 * torch.finfo(dtype).eps * b.norm()


def test_nothing_wide_is_kept() -> None:
    q, k, v = (draw(1, heads, 64, 32, dtype=torch.bfloat16) for heads in (4, 2, 2))
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention(q, k, v, None, None, True)
    assert sum(t.nbytes for t in kept) == 2 * q.nbytes + 2 * k.nbytes + 4 * 4 * 64

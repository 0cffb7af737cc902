"""Attention against PyTorch's in float64, values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from graftlm.kernels.attention import attention
from graftlm.kernels.mask_blocks import Block, blocks
from tests.kernels.test_mask_blocks import causal as laid_end_to_end


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def masks(rows: int, length: int, positions: int) -> list[Tensor | None]:
    seen = torch.rand(rows, 1, length, positions) > 0.3
    seen[..., 0] = True
    return [None, seen, torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))]


def assert_close_to_float64(
    ours: tuple[Tensor, ...],
    factors: tuple[Tensor, ...],
    dy: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> None:
    """``ours``: y, and the gradients of q, k and v."""
    wide = [t.detach().double().requires_grad_() for t in factors]
    spread = [t.repeat_interleave(wide[0].shape[1] // t.shape[1], 1) for t in wide]
    added = mask.double() if mask is not None and mask.dtype != torch.bool else mask
    truth = torch.nn.functional.scaled_dot_product_attention(
        *spread, attn_mask=added, is_causal=causal, scale=0.3
    )
    theirs = truth, *torch.autograd.grad(truth, wide, dy.double())
    for a, b in zip(ours, theirs, strict=True):
        roundings = 2 if a.dtype != torch.float32 else 8
        assert (a.double() - b).norm() <= roundings * torch.finfo(a.dtype).eps * b.norm()


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
        whole = (Block(0, max(sizes), causal),)
        y = attention(q, k, v, mask, 0.3, whole)
        assert y.dtype == dtype
        ours = y, *torch.autograd.grad(y, (q, k, v), dy)
        assert_close_to_float64(ours, (q, k, v), dy, mask, causal)


def test_nothing_wide_is_kept() -> None:
    q, k, v = (draw(1, heads, 64, 32, dtype=torch.bfloat16) for heads in (4, 2, 2))
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention(q, k, v, None, None, (Block(0, 64, True),))
    assert sum(t.nbytes for t in kept) == 2 * q.nbytes + 2 * k.nbytes + 4 * 4 * 64


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_of_sequences_end_to_end(dtype: torch.dtype, window: int | None) -> None:
    torch.manual_seed(0)
    mask = laid_end_to_end([40, 10, 50, 33, 9], window)
    length = mask.shape[-1]
    found = blocks(mask)
    assert len(found) == 3
    q, k, v = (draw(1, heads, length, 16, dtype=dtype) for heads in (4, 2, 2))
    dy = torch.randn(1, 4, length, 16).to(dtype)
    y = attention(q, k, v, mask, 0.3, found)
    ours = y, *torch.autograd.grad(y, (q, k, v), dy)
    assert_close_to_float64(ours, (q, k, v), dy, mask, False)

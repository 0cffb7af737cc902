"""Attention against PyTorch's in float64, values and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels import operators
from graftlm.kernels.attention import attention
from graftlm.kernels.mask_blocks import Block, blocks
from graftlm.kernels.native import extension
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
    scale: float = 0.3,
) -> None:
    """``ours``: y, and the gradients of q, k and v."""
    wide = [t.detach().double().requires_grad_() for t in factors]
    spread = [t.repeat_interleave(wide[0].shape[1] // t.shape[1], 1) for t in wide]
    added = mask.double() if mask is not None and mask.dtype != torch.bool else mask
    truth = torch.nn.functional.scaled_dot_product_attention(
        *spread, attn_mask=added, is_causal=causal, scale=scale
    )
    theirs = truth, *torch.autograd.grad(truth, wide, dy.double())
    for a, b in zip(ours, theirs, strict=True):
        roundings = 2 if a.dtype != torch.float32 else 8
        assert (a.double() - b).norm() <= roundings * torch.finfo(a.dtype).eps * b.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (6, 2)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 9), (7, 7), (33, 33), (5, 20)], ids=str)
def test_error_is_that_of_one_rounding(
    level: str, dtype: torch.dtype, heads: tuple[int, int], sizes: tuple[int, int]
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


# Several tiles of queries and chunks of keys, and sizes of heads that are no whole vectors.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("heads", "size"), [((4, 1), 1), ((3, 3), 20), ((4, 2), 72), ((2, 1), 256)], ids=str
)
@pytest.mark.parametrize("kind", ["causal", "all", "window", "end to end"])
def test_long_rows(
    level: str, dtype: torch.dtype, heads: tuple[int, int], size: int, kind: str
) -> None:
    torch.manual_seed(0)
    length, mask, parts = 250, None, (Block(0, 250, kind == "causal"),)
    if kind == "window":
        mask = laid_end_to_end([length], 60)
    elif kind == "end to end":
        mask = laid_end_to_end([100, 97, 53], None)
        parts = blocks(mask)
        assert len(parts) == 3
    q = draw(2, heads[0], length, size, dtype=dtype)
    k, v = (draw(2, heads[1], length, size, dtype=dtype) for _ in range(2))
    dy = torch.randn(2, heads[0], length, size).to(dtype)
    y = attention(q, k, v, mask, None, parts)
    ours = y, *torch.autograd.grad(y, (q, k, v), dy)
    assert_close_to_float64(ours, (q, k, v), dy, mask, kind == "causal", size**-0.5)


@pytest.mark.parametrize("sizes", [(7, 300), (200, 5), (60, 230)], ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 0, 1), (1, 1, 0, 1), (1, 1, 1, 1), (2, 1, 0, 0)], ids=str)
def test_masks_broadcast(level: str, sizes: tuple[int, int], shape: tuple[int, ...]) -> None:
    """In the last dimension too; a zero says where the mask has a single place."""
    torch.manual_seed(0)
    length, positions = sizes
    whole = [
        size if wide else 1
        for size, wide in zip(
            (2, 4, length, positions),
            (shape[0] > 1, shape[1] > 1, not shape[2], shape[3]),
            strict=True,
        )
    ]
    mask = torch.rand(whole) > 0.3
    if shape[3]:
        mask[..., 0] = True
    q = draw(2, 4, length, 16, dtype=torch.float32)
    k, v = (draw(2, 2, positions, 16, dtype=torch.float32) for _ in range(2))
    dy = torch.randn(2, 4, length, 16)
    parts = (Block(0, max(sizes), False),)
    y = attention(q, k, v, mask, 0.3, parts)
    ours = y, *torch.autograd.grad(y, (q, k, v), dy)
    if shape[3]:  # else some positions see nothing, which is NaN to PyTorch
        return assert_close_to_float64(ours, (q, k, v), dy, mask, False)
    full = attention(q, k, v, mask.expand(2, 4, *sizes).contiguous(), 0.3, parts)
    theirs = full, *torch.autograd.grad(full, (q, k, v), dy)
    assert not mask.all()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return None


def test_expanded_factors() -> None:
    torch.manual_seed(0)
    one = [torch.randn(1, 1, 60, 16) for _ in range(4)]
    found = []
    for many in (lambda t: t.expand(2, 4, 60, 16), lambda t: t.expand(2, 4, 60, 16).contiguous()):
        q, k, v, dy = (many(t) for t in one)
        factors = [t.detach().requires_grad_() for t in (q, k, v)]
        y = attention(*factors, None, None, (Block(0, 60, True),))
        found.append([y.detach(), *torch.autograd.grad(y, factors, dy)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("k_shape", "parts"),
    [
        ((1, 3, 8, 16), [(0, 8, True)]),
        ((1, 4, 8, 24), [(0, 8, True)]),
        ((2, 2, 8, 16), [(0, 8, True)]),
        ((1, 2, 8, 16), [(0, 4, True)]),
        ((1, 2, 8, 16), [(0, 5, True), (4, 8, True)]),
        ((1, 2, 8, 16), [(0, 8, True), (8, 8, True)]),
        ((1, 2, 9, 16), [(0, 8, True), (8, 9, True)]),
    ],
)
def test_what_does_not_fit_is_refused(
    k_shape: tuple[int, ...], parts: list[tuple[int, int, bool]]
) -> None:
    q, k = torch.randn(1, 2, 8, 16), torch.randn(k_shape)
    with pytest.raises(ModelError, match="q is"):
        attention(q, k, k, None, None, [Block(*part) for part in parts])


@pytest.mark.parametrize(
    "parts", [(Block(0, 130, True),), tuple(Block(i, i + 65, True) for i in (0, 65))]
)
def test_threads_do_not_change_a_bit(
    on_threads: Callable[..., list[Any]], parts: tuple[Block, ...]
) -> None:
    torch.manual_seed(0)
    q, dy = (torch.randn(1, 4, 130, 24, dtype=torch.bfloat16) for _ in range(2))
    k, v = (torch.randn(1, 2, 130, 24, dtype=torch.bfloat16) for _ in range(2))
    q, k, v = (t.requires_grad_() for t in (q, k, v))

    def work() -> list[Tensor]:
        y = attention(q, k, v, None, None, parts)
        return [y.detach(), *torch.autograd.grad(y, (q, k, v), dy)]

    first, *others = on_threads(work, (1, 2, 7))  # more threads than heads, too
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("last", [(1, 0, 2, 3), (0, 1, 3, 2)], ids=str)
def test_any_order_in_memory(last: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = [torch.randn(2, heads, 60, 16) for heads in (4, 2, 2, 4)]
    orders = [(0, 2, 1, 3), (2, 0, 1, 3), last, (2, 1, 0, 3)]
    turned = [
        t.permute(order).contiguous().permute([order.index(i) for i in range(4)])
        for t, order in zip(plain, orders, strict=True)
    ]
    assert (operators()["attention"].runs(*turned[:3], None, 0.25, [0, 60, 1]) == "native") == (
        last[3] == 3 and bool(extension())
    )
    found = []
    for q, k, v, dy in (plain, turned):
        factors = [t.detach().requires_grad_() for t in (q, k, v)]
        y = attention(*factors, None, None, (Block(0, 60, True),))
        found.append([y.detach(), *torch.autograd.grad(y, factors, dy)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_position_that_sees_nothing_is_zero_and_has_no_gradient(
    level: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    q, k, v = (draw(1, 2, 70, 16, dtype=dtype) for _ in range(3))
    mask = torch.ones(70, 70, dtype=torch.bool).tril()[None, None].clone()
    mask[..., 50, :] = False
    y = attention(q, k, v, mask, None, (Block(0, 70, False),))
    assert (y[:, :, 50] == 0).all()
    dq, dk, dv = torch.autograd.grad(y, (q, k, v), torch.ones_like(y))
    assert (dq[:, :, 50] == 0).all()
    assert all(t.isfinite().all() for t in (y, dq, dk, dv))


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

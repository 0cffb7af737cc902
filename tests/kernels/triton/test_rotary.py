"""Rotary embedding in Triton's interpreter, against float64; see `test_interpreted.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftlm.kernels.products import draw

pytest.importorskip("triton", reason="Triton has no build for this system")

from graftlm.kernels.triton import implementations, rotary
from tests.kernels.triton.test_interpreted import TYPES, require_close

SHAPES = [(2, 3, 5, 16), (1, 1, 1, 2), (2, 70, 3, 6), (1, 4, 7, 256), (1, 9, 2, 1024), (0, 2, 3, 8)]
"""(B, H, L, D); the heads of some do not fill a power of two, or several programs."""


def truth_of(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x, cos, sin = x.double(), cos.double()[:, None], sin.double()[:, None]
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_and_its_gradient_are_those_of_float64(
    shape: tuple[int, ...], one_row: bool, dtype: torch.dtype
) -> None:
    rows, heads, length, width = shape
    x = draw(rows, length, heads, width, dtype=dtype).transpose(1, 2)
    angles = (1 if one_row else rows, length, width)
    cos, sin = draw(*angles, seed=1, dtype=dtype), draw(*angles, seed=2, dtype=dtype)
    dy = draw(*shape, seed=3, dtype=dtype)
    leaf = x.double().requires_grad_()
    truth = truth_of(leaf, cos, sin)
    (slope,) = torch.autograd.grad(truth, leaf, dy.double())
    y = rotary.rotary(x, cos, sin, False)
    assert y.dtype == dtype
    assert y.stride() == x.stride() or not x.numel()
    require_close(y, truth.detach())
    require_close(rotary.rotary(dy, cos, sin, True), slope)


@pytest.mark.parametrize("dtype", TYPES)
def test_inputs_lie_in_memory_as_they_like(dtype: torch.dtype) -> None:
    whole = draw(2, 5, 3 * 4 * 8, dtype=dtype)  # queries, keys and values of one projection
    x = whole[..., 32:64].view(2, 5, 4, 8).transpose(1, 2)
    cos, sin = (draw(1, 8, 5, seed=seed).transpose(1, 2) for seed in (1, 2))
    require_close(rotary.rotary(x, cos, sin, False), truth_of(x, cos, sin))
    turned = draw(2, 4, 8, 5, dtype=dtype).transpose(2, 3)
    require_close(rotary.rotary(turned, cos, sin, False), truth_of(turned, cos, sin))
    spread = draw(1, 1, 1, 1, dtype=dtype).expand(2, 4, 5, 8)  # the slope of a sum
    require_close(rotary.rotary(spread, cos, sin, False), truth_of(spread, cos, sin))


def test_turning_there_and_back_changes_nothing() -> None:
    x, angle = draw(2, 3, 50, 64), torch.rand(1, 50, 32) * 6
    cos, sin = angle.cos().repeat(1, 1, 2), angle.sin().repeat(1, 1, 2)
    again = rotary.rotary(rotary.rotary(x, cos, sin, False), cos, sin, True)
    torch.testing.assert_close(again, x)


def test_a_head_that_does_not_fit_in_registers_is_left_to_pytorch() -> None:
    cos = torch.ones(1, 3, 2048)
    assert not implementations._takes_turn(draw(1, 1, 3, 2048), cos, cos, False)
    cos = cos[..., :1024]
    assert implementations._takes_turn(draw(1, 1, 3, 1024), cos, cos, False)
    assert not implementations._takes_turn(draw(1, 1, 3, 1024), cos.double(), cos, False)

"""Rotary embedding: what any device computes, against float64 and transformers' own function."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from graftlm.errors import ModelError
from graftlm.kernels.products import draw
from graftlm.kernels.rotary import has_kernel, rotary


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 16), (1, 1, 1, 2), (0, 2, 3, 8), (1, 2, 0, 8)])
def test_it_and_its_gradient_are_those_of_transformers_in_float64(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    rows, heads, length, width = shape
    x = draw(rows, length, heads, width, dtype=dtype).transpose(1, 2).requires_grad_()
    cos, sin = (draw(1, length, width, seed=seed, dtype=dtype) for seed in (1, 2))
    dy = draw(*shape, seed=3, dtype=dtype)
    y = rotary(x, cos, sin)
    (dx,) = torch.autograd.grad(y, x, dy)
    wide = x.detach().double().requires_grad_()
    truth, _ = apply_rotary_pos_emb(wide, wide, cos.double(), sin.double())
    (slope,) = torch.autograd.grad(truth, wide, dy.double())
    assert y.dtype == dx.dtype == dtype
    step = torch.finfo(dtype).eps
    for ours, theirs in ((y, truth), (dx, slope)):
        torch.testing.assert_close(ours.double(), theirs, rtol=step, atol=4 * step)


def test_it_passes_opcheck() -> None:
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    angles = torch.randn(2, 5, 8)
    torch.library.opcheck(torch.ops.graftlm.rotary, (x, angles.cos(), angles.sin(), False))


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, angles = torch.randn(2, 3, 5, 8), torch.randn(1, 5, 8)
    for x_, cos, sin in (
        (x[0], angles, angles),
        (x[..., :7], angles[..., :7], angles[..., :7]),
        (x, angles[:, :4], angles[:, :4]),
        (x, angles, angles[..., :4]),
        (x, angles.expand(3, -1, -1), angles.expand(3, -1, -1)),
    ):
        with pytest.raises(ModelError, match="even D"):
            rotary(x_, cos, sin)


def test_no_kernel_on_the_processor_which_keeps_the_operations_of_transformers() -> None:
    x, angles = torch.randn(2, 3, 5, 8), torch.randn(1, 5, 8)
    assert not has_kernel(x, angles, angles)

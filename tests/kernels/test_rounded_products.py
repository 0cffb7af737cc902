"""Products of rounded factors: bfloat16 on AMX, blocks of 16-bit whole numbers on AVX2."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftlm import nf4
from graftlm.kernels import cross_entropy, ops
from graftlm.kernels.cross_entropy_reference import Head

BLOCK = 64
ROUNDING = {
    "amx": 5e-3,
    "avx2": 4e-4,
    "avx512": 1e-6,
    "neon": 1e-6,
    "scalar": 1e-6,
    "reference": 1e-6,
}
"""Error of a product over the size of such a sum of independent terms. bfloat16 keeps 8 bits."""


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def backward(dy: Tensor, w4: nf4.NF4Weight) -> Tensor:
    return torch.ops.graftlm.nf4_linear_backward(dy, *ops._parts(w4), "bfloat16")


def errors(x: Tensor, dy: Tensor, w4: nf4.NF4Weight) -> list[float]:
    w = nf4.dequantize(w4).double()
    pairs = ((ops.linear(x, w4, compute="bfloat16"), x, w), (backward(dy, w4), dy, w.T))
    return [
        float((y - f.double() @ v.T).norm() / (f.double() ** 2 @ v.T**2).sqrt().norm())
        for y, f, v in pairs
    ]


@pytest.mark.parametrize("shape", [(96, 640), (130, 1000), (33, 65), (70, 4160), (1, 128), (5, 1)])
@pytest.mark.parametrize("rows", [9, 17, 70, 520])
def test_the_error_is_that_of_the_rounding(level: str, shape: tuple[int, int], rows: int) -> None:
    w4 = nf4.quantize(draw(shape, 0))
    found = errors(draw((rows, shape[1]), 1), draw((rows, shape[0]), 2), w4)
    assert max(found) <= ROUNDING[level]


def test_blocks_of_any_size_are_rounded_each_by_itself(level: str) -> None:
    sizes = 10.0 ** torch.arange(-6, 7, 2).repeat_interleave(BLOCK)
    w4 = nf4.quantize(draw((192, len(sizes)), 0) / sizes, BLOCK, double_quant=False)
    found = errors(draw((20, len(sizes)), 1) * sizes, draw((20, 192), 2), w4)
    assert found[0] <= ROUNDING[level]  # each block has the same share of the sum


def test_the_largest_sums_do_not_overflow(level: str) -> None:
    for sign in (1.0, -1.0):
        w4 = nf4.quantize(torch.full((128, 640), 0.5), double_quant=False)
        x = torch.full((12, 640), 3.0 * sign)
        torch.testing.assert_close(
            ops.linear(x, w4, compute="bfloat16"),
            torch.full((12, 128), 960.0 * sign), rtol=1e-6, atol=0,
        )  # fmt: skip
        torch.testing.assert_close(
            backward(torch.full((12, 128), 2.0 * sign), w4),
            torch.full((12, 640), 128.0 * sign), rtol=1e-6, atol=0,
        )  # fmt: skip


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_in_its_row_alone(level: str, bad: float) -> None:
    w4 = nf4.quantize(draw((130, 200), 0))
    x, dy = draw((20, 200), 1), draw((20, 130), 2)
    x[7, 100], dy[3, 129] = bad, bad
    for row, result in ((7, ops.linear(x, w4, compute="bfloat16")), (3, backward(dy, w4))):
        finite = result.isfinite()
        assert not finite[row].all()
        finite[row] = True
        assert finite.all()


def test_zeros_and_numbers_too_small_to_matter(level: str) -> None:
    w4 = nf4.quantize(draw((40, 192), 0))
    x = torch.zeros(12, 192)
    assert (ops.linear(x, w4, compute="bfloat16") == 0).all()
    x[:, 5] = 1e-38
    assert ops.linear(x, w4, compute="bfloat16").abs().max() <= 1e-36
    x[:, 5] = 1e38
    assert ops.linear(x, w4, compute="bfloat16").isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_of_bfloat16_states_are_close(level: str, dtype: torch.dtype) -> None:
    weight, hidden = (0.2 * draw((5000, 200), 0)).to(dtype), draw((70, 200), 1).bfloat16()
    targets = torch.arange(70) * 61
    walk = cross_entropy.forward(hidden, Head(weight), targets)
    z = hidden.double() @ weight.double().T
    exact = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    torch.testing.assert_close(walk.loss.double(), exact, rtol=1e-5, atol=3e-3)
    if dtype == torch.float32:  # never rounded
        torch.testing.assert_close(walk.loss.double(), exact, rtol=1e-5, atol=3e-4)

"""Products of rounded factors: bfloat16 on AMX, blocks of 16-bit whole numbers on AVX2."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftlm.kernels import cross_entropy, nf4, ops
from graftlm.kernels.products import weight_arguments
from graftlm.kernels.reference.cross_entropy import Head
from tests.oracles.products import rounds_to_int16

BLOCK = 64
ROUNDING = {"amx": 5e-3, "avx2": 4e-4}
"""Error of a product over the size of such a sum of independent terms; elsewhere it is float32."""
FLOAT32 = 1e-6


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def backward(dy: Tensor, w4: nf4.NF4Weight) -> Tensor:
    return torch.ops.graftlm.nf4_linear_backward(dy, *weight_arguments(w4), "bfloat16")


def error(result: Tensor, x: Tensor, w: Tensor) -> float:
    x, w = x.double(), w.double()
    return float((result - x @ w.T).norm() / (x**2 @ w.T**2).sqrt().norm())


def errors(x: Tensor, dy: Tensor, w4: nf4.NF4Weight) -> tuple[float, float]:
    w = nf4.dequantize(w4)
    forward = error(ops.linear(x, w4, compute="bfloat16"), x, w)
    return forward, error(backward(dy, w4), dy, w.T)


# Odd ends of blocks and panels, a single column, several blocks of depth both ways.
@pytest.mark.parametrize(
    "shape", [(96, 640), (130, 1000), (33, 65), (70, 4160), (1100, 96), (1, 128), (5, 1)], ids=str
)
@pytest.mark.parametrize("rows", [9, 17, 70, 520])
def test_the_error_is_that_of_the_rounding(level: str, shape: tuple[int, int], rows: int) -> None:
    w4 = nf4.quantize(draw(*shape, seed=0))
    found = errors(draw(rows, shape[1], seed=1), draw(rows, shape[0], seed=2), w4)
    assert max(found) <= ROUNDING.get(level, FLOAT32)
    if level in ROUNDING and min(shape) > 1:  # or factors were not rounded at all
        assert min(found) >= 1e-5


def test_numbers_of_eight_bits_are_exact(level: str) -> None:
    """Factors are such numbers, and of one size within a block: all of bfloat16 is kept."""
    x = draw(20, 640, seed=0).bfloat16()
    x = (x.sign() * (1 + x.abs() % 1)).float()  # between one and two; float32, as the result is
    w = draw(96, 640, seed=1).bfloat16()
    w = w.sign() * (1 + w.abs() % 1)
    A, B = torch.zeros(1, 640), torch.zeros(96, 1)
    y = ops.lora_linear(x, w, None, A, B, 1.0, "bfloat16")
    assert y.dtype == torch.float32
    assert error(y, x, w) <= FLOAT32


@pytest.mark.parametrize(("largest", "step"), [(5792, 1), (5794, 2), (8190, 2)])
@pytest.mark.parametrize("exponent", [-110, -20, 0, 100])
def test_whole_numbers_up_to_5792_are_exact_and_even_ones_up_to_twice_that(
    level: str, largest: int, step: int, exponent: int
) -> None:
    if level == "amx":
        return  # bfloat16 has eight bits
    numbers = torch.arange(0, largest + 1, step).flip(0)[: 15 * BLOCK].reshape(15, BLOCK)
    numbers[:, 0] = largest  # in every block, as the one that its scale is made from
    x = numbers.float() * 2.0**exponent
    w = torch.eye(BLOCK)
    A, B = torch.zeros(1, BLOCK), torch.zeros(BLOCK, 1)
    torch.testing.assert_close(
        ops.lora_linear(x, w, None, A, B, 1.0, "bfloat16"), x, rtol=0, atol=0
    )


@pytest.mark.parametrize("rank", [1, 33, 80])
def test_updates_of_any_rank_ride_along(level: str, rank: int) -> None:
    w4 = nf4.quantize(draw(700, 96, seed=0))
    w = nf4.dequantize(w4)
    A, B = draw(rank, 96, seed=1), draw(700, rank, seed=2) / 8
    x = draw(40, 96, seed=3).requires_grad_()
    y = ops.lora_linear(x, w4, None, A, B, 0.5, "bfloat16")
    merged = w + 0.5 * B @ A
    assert error(y.detach(), x.detach(), merged) <= 4 * ROUNDING.get(level, FLOAT32)
    dy = draw(40, 700, seed=4)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert error(dx, dy, merged.T) <= 4 * ROUNDING.get(level, FLOAT32)


def test_blocks_of_any_size_are_rounded_each_by_itself(level: str) -> None:
    sizes = 10.0 ** torch.arange(-6, 7, 2).repeat_interleave(BLOCK)
    n = len(sizes)
    w4 = nf4.quantize(draw(192, n, seed=0) / sizes, BLOCK, double_quant=False)
    found, _ = errors(draw(20, n, seed=1) * sizes, draw(20, 192, seed=2), w4)
    assert found <= ROUNDING.get(level, FLOAT32)  # each block has the same share of the sum
    w4 = nf4.quantize(draw(n, 192, seed=0) / sizes[:, None], BLOCK, double_quant=False)
    _, found = errors(draw(20, 192, seed=1), draw(20, n, seed=2) * sizes, w4)
    assert found <= ROUNDING.get(level, FLOAT32)


def test_a_large_number_costs_its_own_block_alone(level: str) -> None:
    w4 = nf4.quantize(draw(96, 640, seed=0))
    x = draw(20, 640, seed=1)
    x[:, 70] = 1000.0
    y = ops.linear(x, w4, compute="bfloat16") - 1000.0 * nf4.dequantize(w4)[:, 70]
    x[:, 70] = 0.0
    found = error(y, x, nf4.dequantize(w4))
    # In steps of a quarter for 63 of 640 numbers; the large one itself is rounded, as is W.
    assert found <= {"amx": 0.2, "avx2": 0.05}.get(level, 1e-4)


def test_the_largest_sums_do_not_overflow(level: str) -> None:
    for sign in (1.0, -1.0):
        for size in (0.5, *(limit * 5792 / 4096 for limit in (0.999, 1.001)), 1.999):
            w4 = nf4.quantize(torch.full((128, 640), size), double_quant=False)
            x = torch.full((12, 640), size * sign)
            y, dx = ops.linear(x, w4, compute="bfloat16"), backward(x[:, :128], w4)
            expected = sign * nf4.dequantize(w4)[0, 0].double() * size
            bound = 3 * ROUNDING.get(level, FLOAT32)
            torch.testing.assert_close(
                y.double(), (640 * expected).expand_as(y), rtol=bound, atol=0
            )
            torch.testing.assert_close(
                dx.double(), (128 * expected).expand_as(dx), rtol=bound, atol=0
            )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_in_its_row_alone(level: str, bad: float) -> None:
    w4 = nf4.quantize(draw(130, 200, seed=0))
    x, dy = draw(20, 200, seed=1), draw(20, 130, seed=2)
    x[7, 100], dy[3, 129] = bad, bad
    for row, result in ((7, ops.linear(x, w4, compute="bfloat16")), (3, backward(dy, w4))):
        finite = result.isfinite()
        assert not finite[row].any()
        finite[row] = True
        assert finite.all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_spoils_its_feature_alone(level: str, bad: float) -> None:
    w = draw(130, 200, seed=0).bfloat16()
    w[40, 150] = bad
    A, B = torch.zeros(1, 200), torch.zeros(130, 1)
    x = draw(20, 200, seed=1).bfloat16().requires_grad_()
    y = ops.lora_linear(x, w, None, A, B, 1.0)
    (dx,) = torch.autograd.grad(y, x, draw(20, 130, seed=2).bfloat16())
    for at, result in ((40, y), (150, dx)):
        finite = result.isfinite()
        assert not finite[:, at].any()
        finite[:, at] = True
        assert finite.all()


def test_zeros_and_the_ends_of_the_range(level: str) -> None:
    w4 = nf4.quantize(draw(40, 192, seed=0))
    x = torch.zeros(12, 192)
    assert (ops.linear(x, w4, compute="bfloat16") == 0).all()
    x[:, 5] = 1e-38
    assert ops.linear(x, w4, compute="bfloat16").abs().max() <= 1e-36
    x[:, 5] = 1e38
    assert ops.linear(x, w4, compute="bfloat16").isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_of_bfloat16_states_are_close(level: str, dtype: torch.dtype) -> None:
    weight, hidden = (0.2 * draw(5000, 200, seed=0)).to(dtype), draw(70, 200, seed=1).bfloat16()
    targets = torch.arange(70) * 61
    walk = cross_entropy.forward(hidden, Head(weight), targets)
    z = hidden.double() @ weight.double().T
    exact = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    rounded = rounds_to_int16(dtype)
    torch.testing.assert_close(walk.loss.double(), exact, rtol=1e-5, atol=1e-3 if rounded else 3e-4)


def test_a_certain_token_costs_nothing(level: str) -> None:
    """A token that is certain has the logit of the whole sum, rounded alike."""
    weight = draw(300, 200, seed=0).bfloat16()
    targets = torch.arange(300)
    walk = cross_entropy.forward(weight * 2, Head(weight), targets)
    assert walk.loss.min() >= -4e-4  # some last bits of logits of 400
    assert walk.loss.max() <= 2e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_hidden_state_that_is_not_finite_spoils_its_loss_alone(level: str, bad: float) -> None:
    weight, hidden = draw(500, 96, seed=0).bfloat16(), draw(70, 96, seed=1).bfloat16()
    hidden[30, 50] = bad
    loss = cross_entropy.forward(hidden, Head(weight), torch.arange(70)).loss
    finite = loss.isfinite()
    assert not finite[30]
    finite[30] = True
    assert finite.all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_stored_maximum_that_is_not_finite_spoils_its_block_alone(level: str, bad: float) -> None:
    w4 = nf4.quantize(draw(130, 192, seed=0), double_quant=False)
    w4.absmax[40 * 3 + 1] = bad  # features 64 to 127 of row 40
    y = ops.linear(draw(20, 192, seed=1), w4, compute="bfloat16")
    dx = backward(draw(20, 130, seed=2), w4)
    for at, result in ((slice(40, 41), y), (slice(64, 128), dx)):
        finite = result.isfinite()
        assert not finite[:, at].any()
        finite[:, at] = True
        assert finite.all()


@pytest.mark.parametrize("block_size", [32, 64, 128, 256])
@pytest.mark.parametrize("cols", [256, 320, 1024])
def test_stored_blocks_of_any_size(level: str, block_size: int, cols: int) -> None:
    """Packed as they are stored where whole blocks make a row, else as what they stand for."""
    w4 = nf4.quantize(draw(100, cols, seed=0), block_size)
    found = errors(draw(20, cols, seed=1), draw(20, 100, seed=2), w4)
    assert max(found) <= ROUNDING.get(level, FLOAT32)


def test_maxima_of_all_sizes_keep_the_share_of_the_greatest(level: str) -> None:
    """Down the rows of a stored weight, 64 maxima share a scale."""
    sizes = 10.0 ** -(torch.arange(128) % 8).float()
    w4 = nf4.quantize(draw(128, 192, seed=0) * sizes[:, None], double_quant=False)
    _, found = errors(draw(20, 192, seed=1), draw(20, 128, seed=2), w4)
    # An eighth of the rows makes the sum, and all are rounded.
    assert found <= 3 * ROUNDING.get(level, FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dense_weights_of_any_type_and_odd_ends(level: str, dtype: torch.dtype) -> None:
    w = draw(70, 130, seed=0).to(dtype)
    A, B = torch.zeros(1, 130), torch.zeros(70, 1)
    x = draw(20, 130, seed=1).requires_grad_()
    y = ops.lora_linear(x, w, None, A, B, 1.0, "bfloat16")
    bound = ROUNDING.get(level, FLOAT32)
    assert error(y.detach(), x.detach(), w) <= bound
    dy = draw(20, 70, seed=2)
    assert error(torch.autograd.grad(y, x, dy)[0], dy, w.T) <= bound

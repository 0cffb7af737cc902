"""Each Triton kernel in Triton's interpreter, against the truth in float64.

The allowed error is that of the naive code in the same type, or some last bits of that type. Shapes
are odd, so that the edges of tiles are reached; the arguments of some cases are not contiguous.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels import nf4
from graftlm.kernels.cross_entropy import Head
from graftlm.kernels.gated_unit import GELU_TANH, SILU
from graftlm.kernels.nf4_convert import assemble
from graftlm.kernels.products import draw, weight_arguments
from graftlm.kernels.reference import cross_entropy as exact

pytest.importorskip("triton", reason="Triton has no build for this system")

from graftlm.kernels.triton import (
    cross_entropy,
    factor_gradient,
    gated_unit,
    implementations,
    low_rank,
    nf4_dequantize,
    nf4_few_rows,
    nf4_quantize,
    products,
    rms_norm,
)

# A card gives infinity for these; NumPy, in the interpreter, also warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

TYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS = {torch.float32: 2**-18, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""Some last bits of each type, relative to the largest value."""


def turned(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of this shape whose last dimension is not contiguous."""
    *rest, rows, columns = shape
    return draw(*rest, columns, rows, seed=seed, dtype=dtype).transpose(-1, -2)


def require_close(ours: Tensor, truth: Tensor, naive: Tensor | None = None) -> None:
    """Refuse an error that is larger than the naive code's and some last bits."""
    assert ours.shape == truth.shape
    if not truth.numel():
        return
    allowed = BITS[ours.dtype] * float(truth.abs().max())
    if naive is not None:
        allowed += float((naive.double() - truth).abs().max())
    assert float((ours.double() - truth).abs().max()) <= allowed


# ------------------------------------------------------------------------------- 4 bits


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("shape", "block_size"),
    [((33, 71), 32), ((1, 1), 64), ((5, 64), 64), ((3, 333), 4096), ((130, 130), 128)],
)
@pytest.mark.parametrize("double", [False, True])
def test_quantised_bits_are_those_of_the_reference(
    shape: tuple[int, int], block_size: int, dtype: torch.dtype, double: bool
) -> None:
    w = turned(*shape, dtype=dtype)
    w[0, 0] = 0.0
    wanted = nf4.quantize(w, block_size, double)
    shrink = nf4_quantize.double_quantize if double else None
    found = assemble(w, *nf4_quantize.quantize(w, block_size), block_size, shrink)
    for field in dataclasses.fields(wanted):
        theirs, ours = getattr(wanted, field.name), getattr(found, field.name)
        assert torch.equal(ours, theirs) if isinstance(theirs, Tensor) else ours == theirs
    for out in TYPES:
        dense = nf4_dequantize.dequantize(*weight_arguments(found), out)
        assert torch.equal(dense, nf4.dequantize(wanted, out))


def test_blocks_of_zeros_tiny_and_equal_values_have_the_reference_bits() -> None:
    w = torch.zeros(6, 64)
    w[1], w[2], w[3, ::2], w[4] = 1e-39, -3.0, 3e38, 7.0
    wanted = nf4.quantize(w, 64)
    found = assemble(w, *nf4_quantize.quantize(w, 64), 64, nf4_quantize.double_quantize)
    assert torch.equal(found.codes, wanted.codes)
    assert torch.equal(found.absmax, wanted.absmax)
    same = torch.full((2, 64), 0.5)  # maxima without spread
    assert torch.equal(
        assemble(same, *nf4_quantize.quantize(same, 64), 64, nf4_quantize.double_quantize).absmax,
        nf4.quantize(same, 64).absmax,
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 65, 99])
def test_a_weight_that_is_not_finite_is_refused(bad: float, place: int) -> None:
    w = torch.ones(100)
    w[place] = bad
    with pytest.raises(ModelError, match="NaN or infinity in 1 of 2 blocks"):
        assemble(w, *nf4_quantize.quantize(w, 64), 64, nf4_quantize.double_quantize)


# ----------------------------------------------------------------------------- products


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [(0,), (1,), (3,), (2, 8), (5, 7)])
@pytest.mark.parametrize(
    ("shape", "block_size", "double"),
    [((37, 128), 64, True), ((5, 96), 32, False), ((9, 90), 64, True), ((3, 512), 512, True)],
)
def test_products_with_four_bits(
    rows: tuple[int, ...],
    shape: tuple[int, int],
    block_size: int,
    double: bool,
    dtype: torch.dtype,
) -> None:
    w4 = nf4.quantize(draw(*shape), block_size, double)
    bias = draw(shape[0], seed=5)
    x, dy = draw(*rows, shape[1], seed=1, dtype=dtype), draw(*rows, shape[0], seed=2, dtype=dtype)
    A, B = draw(6, shape[1], seed=3), draw(shape[0], 6, seed=4)
    dense = nf4.dequantize(w4, torch.float64)
    stored, narrow = weight_arguments(w4), dense.to(dtype)
    y = products.nf4_linear(x, *stored, bias, "auto")
    naive = F.linear(x, narrow, bias.to(dtype))
    require_close(y, x.double() @ dense.T + bias.double(), naive)
    dx = products.nf4_linear_backward(dy, *stored, "auto")
    require_close(dx, dy.double() @ dense, dy @ narrow)
    y, u = products.nf4_lora_linear(x, *stored, bias, A, B, 0.5, "auto")
    thin = x.double() @ A.double().T
    require_close(u, thin, x @ A.T.to(dtype))
    update = 0.5 * (x @ A.T.to(dtype)) @ B.T.to(dtype)
    truth = x.double() @ dense.T + bias.double() + 0.5 * thin @ B.double().T
    require_close(y, truth, naive + update)
    dx, v = products.nf4_lora_linear_backward(dy, *stored, A, B, 0.5, "auto")
    thin = 0.5 * dy.double() @ B.double()
    require_close(v, thin, 0.5 * dy @ B.to(dtype))
    naive = dy @ narrow + (0.5 * dy @ B.to(dtype)) @ A.to(dtype)
    require_close(dx, dy.double() @ dense + thin @ A.double(), naive)


def test_the_kernel_of_few_rows_takes_what_it_says() -> None:
    assert nf4_few_rows.fits(1, 128, 4096) is False
    assert nf4_few_rows.fits(1, 8192, 4096)
    assert not nf4_few_rows.fits(2, 8192, 4096)
    assert nf4_few_rows.fits(nf4_few_rows.MOST_ROWS, 128, 64)
    assert not nf4_few_rows.fits(nf4_few_rows.MOST_ROWS + 1, 128, 64)
    assert not nf4_few_rows.fits(0, 128, 64)
    assert not nf4_few_rows.fits(1, 90, 64)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("rows", "features", "rank"), [(1, 1, 1), (70, 65, 5), (0, 8, 4), (33, 130, 100)]
)
def test_thin_products_and_the_gradients_of_factors(
    rows: int, features: int, rank: int, dtype: torch.dtype
) -> None:
    x, factor = turned(rows, features, dtype=dtype), draw(rank, features, seed=1)
    u = low_rank.down(x, factor, 0.3)
    truth = 0.3 * x.double() @ factor.double().T
    require_close(u, truth, 0.3 * (x @ factor.T.to(dtype)))
    assert torch.equal(u, low_rank.down(x, factor.T.contiguous().T, 0.3))  # a transposed view
    y, thin = draw(rows, features, seed=2, dtype=dtype), draw(rows, rank, seed=3, dtype=dtype)
    truth = y.double() + 0.3 * thin.double() @ factor.double()
    naive = y + 0.3 * (thin @ factor.to(dtype))
    require_close(low_rank.add_(y.clone(), thin, factor.T, 0.3), truth, naive)
    for turn in (False, True):
        found = factor_gradient.factor_gradient(thin, x, 0.3, turn, "auto")
        truth = 0.3 * thin.double().T @ x.double()
        require_close(found, truth.T if turn else truth)
        assert found.dtype == torch.float32


def test_the_gradient_of_a_factor_over_many_rows_is_the_same_each_time() -> None:
    thin, x = draw(1000, 3, dtype=torch.bfloat16), draw(1000, 20, seed=1, dtype=torch.bfloat16)
    first, again = (factor_gradient.factor_gradient(thin, x, 1.0, False, "auto") for _ in range(2))
    assert torch.equal(first, again)
    require_close(first, thin.double().T @ x.double())


# ------------------------------------------------------------------------- element by element


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 5, 64), (2, 333), (0, 16), (1, 3), (1, 2050)])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_rms_norm(shape: tuple[int, ...], shift: float, dtype: torch.dtype) -> None:
    x = turned(*shape, dtype=dtype) if len(shape) > 2 else draw(*shape, dtype=dtype)
    weight, dy = draw(shape[-1], seed=1, dtype=dtype), draw(*shape, seed=2, dtype=dtype)
    leaf = x.double().requires_grad_()
    truth = F.rms_norm(leaf, shape[-1:], weight.double() + shift, 1e-6)
    y, rstd = rms_norm.rms_norm(x, weight, shift, 1e-6)
    require_close(y, truth.detach())
    if not x.numel():
        return
    (slope,) = torch.autograd.grad(truth, leaf, dy.double())
    require_close(rms_norm.rms_norm_backward(dy, x, weight, rstd, shift), slope)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("act", [SILU, GELU_TANH])
@pytest.mark.parametrize("shape", [(3, 77), (0, 4), (2, 2, 513)])
def test_gated_unit(shape: tuple[int, ...], act: tuple[float, float], dtype: torch.dtype) -> None:
    g, u = 3 * turned(*shape, dtype=dtype), draw(*shape, seed=1, dtype=dtype)
    dy = draw(*shape, seed=2, dtype=dtype)
    leaves = g.double().requires_grad_(), u.double().requires_grad_()
    k, a = act
    truth = leaves[0] * torch.sigmoid(k * (leaves[0] + a * leaves[0] ** 3)) * leaves[1]
    require_close(gated_unit.gated_unit(g, u, *act), truth.detach())
    slopes = torch.autograd.grad(truth, leaves, dy.double())
    for ours, slope in zip(gated_unit.gated_unit_backward(dy, g, u, *act), slopes, strict=True):
        require_close(ours, slope)


@pytest.mark.parametrize("act", [SILU, GELU_TANH])
def test_a_gate_of_any_size_has_finite_results(act: tuple[float, float]) -> None:
    g = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4])
    u = dy = torch.ones(5)
    assert torch.isfinite(gated_unit.gated_unit(g, u, *act)).all()
    dg, du = gated_unit.gated_unit_backward(dy, g, u, *act)
    assert torch.isfinite(dg).all()
    assert torch.equal(du[[0, 2, 4]], torch.tensor([0.0, 0.0, 1e4]))


# -------------------------------------------------------------------------------- the loss

PLAIN: dict[str, Any] = {"scale": 1.0, "softcap": 0.0}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 0.0), (0.25, 0.0), (1.0, 5.0), (2.0, 30.0)])
def test_the_loss_and_its_gradient(
    scale: float, softcap: float, biased: bool, dtype: torch.dtype, monkeypatch: Any
) -> None:
    monkeypatch.setattr(cross_entropy, "TILE_ELEMENTS", 1)  # several tiles, the last one short
    monkeypatch.setattr(cross_entropy, "WORDS", 16)
    monkeypatch.setattr(cross_entropy, "ROWS", 16)
    h, w = 3 * turned(17, 40, dtype=dtype), draw(300, 40, seed=1, dtype=dtype)
    bias = draw(300, seed=2) if biased else None
    targets = torch.arange(17) * 13 % 300
    targets[-1] = 299
    found = cross_entropy.cross_entropy(
        h, w, None, bias, None, targets, scale, softcap, 0.0, 1e-6, 0.05, True
    )
    head = Head(w.double(), None if bias is None else bias.double(), softcap or None, scale)
    truth = exact.forward(h.double(), head, targets, 0.0, want_grad=True)
    logits = head.finished((h @ w.T).double(), slice(0, 300))  # naive: rounded before the softmax
    naive = F.cross_entropy(logits, targets, reduction="none")
    require_close(found[0], truth.loss, naive)
    require_close(found[1], truth.lse, logits.logsumexp(1))
    assert truth.grad_hidden is not None
    error = (found[2].double() - truth.grad_hidden).norm() / truth.grad_hidden.norm()
    assert error <= 2 * BITS[dtype]
    assert found[4].tolist() == [17 * 300, 17]
    assert not found[3].any()
    alone = cross_entropy.cross_entropy(
        h, w, None, bias, None, targets, scale, softcap, 0.0, 1e-6, 0.05, False
    )
    assert torch.equal(alone[0], found[0])
    assert not alone[2].numel()


@pytest.mark.parametrize("dtype", TYPES)
def test_the_loss_of_a_head_in_eight_bits(dtype: torch.dtype) -> None:
    h, codes = draw(9, 33, dtype=dtype), (40 * draw(70, 33, seed=1)).clamp(-127, 127)
    row_scale, targets = draw(70, seed=2).abs() / 40, torch.arange(9)
    found = cross_entropy.cross_entropy(
        h, codes.to(torch.int8), row_scale, None, None, targets, 1.0, 0.0, 0.0, 1e-6, 0.05, True
    )
    head = Head(codes.to(torch.int8).double() * row_scale[:, None].double())
    truth = exact.forward(h.double(), head, targets, 0.0, want_grad=True)
    assert truth.grad_hidden is not None
    torch.testing.assert_close(found[0].double(), truth.loss, rtol=1e-5, atol=1e-5)
    error = (found[2].double() - truth.grad_hidden).norm() / truth.grad_hidden.norm()
    assert error <= 2 * BITS[dtype]


def test_the_loss_of_no_position_and_of_a_position_that_is_not_finite() -> None:
    w, none = draw(50, 8), torch.empty(0, dtype=torch.int64)
    found = cross_entropy.cross_entropy(
        draw(0, 8), w, None, None, None, none, 1.0, 0.0, 0.0, 1e-6, 0.05, True
    )
    assert [tuple(one.shape) for one in found] == [(0,), (0,), (0, 8), (0,), (2,)]
    h = draw(3, 8)
    h[1, 0] = float("nan")
    loss = cross_entropy.cross_entropy(
        h, w, None, None, None, torch.arange(3), 1.0, 0.0, 0.0, 1e-6, 0.05, True
    )[0]
    assert loss.isnan().tolist() == [False, True, False]


def test_the_registration_knows_the_size_of_a_tile() -> None:
    h, w = torch.empty(2048, 4096, dtype=torch.bfloat16), torch.empty(128256, 4096, device="meta")
    words = cross_entropy.tile_rows(len(h), len(w))
    grad, sums = h.numel(), 4 * len(h)
    arguments = (None, None, None, None, 1.0, 0.0, 0.0, 1e-6, 0.05)
    assert implementations._tile(h, w, *arguments, True) == 4 * (len(h) * words + grad + sums)
    assert implementations._tile(h, w, *arguments, False) == 4 * (len(h) * words + sums)

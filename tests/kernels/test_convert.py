"""Quantise and dequantise are the reference's, bit for bit, at every level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.errors import ModelError
from graftlm.kernels import nf4, ops
from graftlm.kernels.nf4.chunks import BLOCK_SIZES
from graftlm.kernels.nf4.codebook import nf4_levels, nf4_thresholds

pytestmark = pytest.mark.usefixtures("level")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1,), (2, 1), (3, 21), (64,), (5, 33), (7, 64), (64, 100), (33, 127), (9, 5000))


def assert_same(ours: nf4.NF4Weight, theirs: nf4.NF4Weight) -> None:
    assert (ours.shape, ours.dtype, ours.block_size) == (
        theirs.shape,
        theirs.dtype,
        theirs.block_size,
    )
    for name in ("codes", "absmax", "nested_absmax", "offset"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b), name


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantize_is_the_reference_to_the_bit(dtype: torch.dtype, block_size: int) -> None:
    for index, shape in enumerate(SHAPES):
        w = torch.randn(shape, generator=torch.Generator().manual_seed(index)).to(dtype)
        for double_quant in (False, True):
            assert_same(
                ops.quantize(w, block_size, double_quant), nf4.quantize(w, block_size, double_quant)
            )


def corners() -> torch.Tensor:
    """Ties, zeros of both signs, subnormal and huge blocks, a midpoint beside its neighbours."""
    ties = torch.cat([nf4_thresholds(), -nf4_thresholds(), nf4_levels(), torch.tensor([1.0])])
    near = torch.cat([ties.nextafter(torch.tensor(2.0)), ties.nextafter(torch.tensor(-2.0))])
    rows = [torch.zeros(64), -torch.zeros(64), torch.full((64,), 1e-45), torch.full((64,), 3e38)]
    for values in (ties, near):
        padded = torch.nn.functional.pad(values, (0, -len(values) % 64), value=1.0)
        rows += [padded * scale for scale in (1.0, 3.0, 1e-38, 7e-20)]
    return torch.cat(rows)


@pytest.mark.parametrize("cut", [0, 1, 40, 63])
def test_quantize_takes_ties_zeros_and_extremes_as_the_reference_does(cut: int) -> None:
    w = corners()
    w = w[: w.numel() - cut]
    assert_same(ops.quantize(w, 64, False), nf4.quantize(w, 64, False))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 70, 129])
def test_quantize_refuses_what_is_not_finite(place: int, bad: float) -> None:
    w = torch.ones(130)
    w[place] = bad
    with pytest.raises(ModelError, match="NaN or infinity"):
        ops.quantize(w)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_dequantize_is_the_reference_to_the_bit(block_size: int, double_quant: bool) -> None:
    for index, shape in enumerate(SHAPES):
        w = torch.randn(shape, generator=torch.Generator().manual_seed(index))
        w4 = nf4.quantize(w, block_size, double_quant)
        for dtype in (*DTYPES, torch.float64):
            assert torch.equal(ops.dequantize(w4, dtype), nf4.dequantize(w4, dtype))


def test_dequantize_rounds_to_every_half_precision_number_as_pytorch_does() -> None:
    scales = torch.logspace(-30, 30, 4096, base=2.0) * 1.0009765625
    w4 = nf4.quantize(scales.repeat_interleave(64).view(-1, 64), 64, False)
    w4.codes.copy_(torch.arange(w4.codes.numel()) % 251)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(ops.dequantize(w4, dtype), nf4.dequantize(w4, dtype))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.data())
def test_any_shape_and_stride_goes_there_and_back(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 300))
    step = data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from(DTYPES))
    block_size = data.draw(st.sampled_from(BLOCK_SIZES[:4]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    w = torch.randn(rows * step, cols * step, generator=generator).to(dtype)[::step, ::step]
    w = w.T if data.draw(st.booleans()) else w
    w4 = ops.quantize(w, block_size)
    assert_same(w4, nf4.quantize(w, block_size))
    assert torch.equal(ops.dequantize(w4), nf4.dequantize(w4))

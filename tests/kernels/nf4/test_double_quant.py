"""The scales' own 8-bit step."""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.errors import ModelError
from graftlm.kernels import operators
from graftlm.kernels.nf4 import dequantize, quantize
from graftlm.kernels.nf4.codebook import GRID, dynamic_levels
from graftlm.kernels.nf4.double_quant import GROUP_SIZE, block_scales, double_quantize
from tests.oracles import nf4_oracle as oracle

WAYS = [double_quantize, operators()["nf4_double_quantize"]]
each_way = pytest.mark.parametrize("shrink", WAYS, ids=["reference", "operator"])


@each_way
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 1500), st.integers(-38, 30), st.integers(0, 2**31))
def test_equals_bitsandbytes_at_any_scale(
    shrink: Any, blocks: int, exponent: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    absmax = torch.randn(blocks, generator=random).abs() * 10.0**exponent
    codes, nested_absmax, offset = shrink(absmax)
    expected, state = bnb.quantize_blockwise(absmax - absmax.mean(), blocksize=256)
    assert torch.equal(codes, expected)
    assert oracle.same_bits(nested_absmax, state.absmax)
    assert oracle.same_bits(offset, absmax.mean())


@each_way
def test_equals_bitsandbytes_between_the_points_of_its_grid(shrink: Any) -> None:
    """Values half-way between grid points where the level changes, and a few floats around."""
    between = (torch.arange(GRID - 1).double() + 0.5) * (2 / (GRID - 1)) - 1
    for towards in (-2.0, 2.0):
        values = between.float()
        for _ in range(4):
            rows = torch.nn.functional.pad(values, (0, 1)).view(-1, 128)
            # Each group holds 1 and -1 twice over, so that its maximum is 1 and the mean is zero.
            ends = torch.tensor([1.0, -1.0]).repeat(rows.shape[0], 1)
            groups = torch.cat([rows, ends, -rows.flip(1)[:, :126]], dim=1).reshape(-1)
            expected, _ = bnb.quantize_blockwise(groups - groups.mean(), blocksize=256)
            assert torch.equal(shrink(groups)[0], expected)
            values = torch.nextafter(values, torch.tensor(towards))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 1500), st.integers(0, 2**31))
def test_error_is_at_most_half_the_largest_gap_of_each_group(blocks: int, seed: int) -> None:
    weight = torch.randn(blocks * 32, generator=torch.Generator().manual_seed(seed))
    plain = quantize(weight, 32, double_quant=False).absmax
    w4 = quantize(weight, 32)
    # The lowest level is -0.993: a group whose maximum is negative is cut off there.
    levels = dynamic_levels().double()
    gap = max(float(levels.diff().max()) / 2, 1 + float(levels[0])) + 1.0 / GRID + 1e-6
    error = (block_scales(w4) - plain).abs()
    scale = w4.nested_absmax.repeat_interleave(GROUP_SIZE)[:blocks]
    assert bool((error <= gap * scale + 1e-6).all())


def test_scales_that_are_all_equal_are_restored_exactly() -> None:
    w4 = quantize(torch.full((1000, 64), 0.375))
    assert bool((block_scales(w4) == 0.375).all())


def test_one_block_is_restored_exactly() -> None:
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dequantize(quantize(weight)), dequantize(quantize(weight, 64, False)))


def test_scales_pass_through_when_not_double_quantised() -> None:
    w4 = quantize(torch.randn(256), double_quant=False)
    assert block_scales(w4) is w4.absmax


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_beyond_float32_is_refused_where_bitsandbytes_stores_nan(dtype: torch.dtype) -> None:
    weight = torch.full((4, 64), 3.0e38, dtype=dtype)
    assert oracle.bnb_dequantize(oracle.bnb_quantize(weight, 64, True), dtype).isnan().any()
    with pytest.raises(ModelError, match="set double_quant to false"):
        quantize(weight)
    assert torch.equal(dequantize(quantize(weight, double_quant=False)), weight)

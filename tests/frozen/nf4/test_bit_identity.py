"""Every bit equal to bitsandbytes: codes, maxima, nested maxima, offset, dense weight."""

from __future__ import annotations

import pytest
import torch

from graftlm.kernels.nf4 import dequantize, quantize
from graftlm.kernels.nf4.chunks import SPAN
from tests.oracles import nf4_oracle as oracle

COUNT = 360
CASES = list(oracle.cases(COUNT, seed=1))
BY_KIND = {kind: [case for case in CASES if case.kind == kind] for kind in oracle.KINDS}


def assert_same_as_bitsandbytes(weight: torch.Tensor, block_size: int, double_quant: bool) -> None:
    ours = quantize(weight, block_size, double_quant)
    theirs = oracle.bnb_quantize(weight, block_size, double_quant)
    assert oracle.differing_parts(ours, theirs) == []


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_stored_weight_equals_that_of_bitsandbytes(kind: str) -> None:
    cases = BY_KIND[kind]
    assert len(cases) == COUNT // len(oracle.KINDS)
    for case in cases:
        assert_same_as_bitsandbytes(case.weight, case.block_size, case.double_quant)


@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_dense_weight_equals_that_of_bitsandbytes(kind: str, dtype: torch.dtype) -> None:
    for case in BY_KIND[kind][::2]:
        w4 = quantize(case.weight, case.block_size, case.double_quant)
        ours, theirs = dequantize(w4, dtype), oracle.bnb_dequantize(w4, dtype)
        if dtype == torch.bfloat16:
            # On CPUs with AVX512-BF16 bitsandbytes flushes products below 1.2e-38 to zero.
            tiny = ours.abs() <= torch.finfo(dtype).smallest_normal
            ours, theirs = ours.masked_fill(tiny, 0.0), theirs.masked_fill(tiny, 0.0)
        assert oracle.same_bits(ours, theirs), case


@pytest.mark.parametrize("block_size", oracle.BLOCK_SIZES)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_every_block_size_and_length_around_it(block_size: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(block_size)
    for numel in (1, block_size - 1, block_size, block_size + 1, 2 * block_size + 3):
        weight = oracle.near_thresholds(numel, block_size, random).to(dtype)
        assert_same_as_bitsandbytes(weight, block_size, double_quant=True)


@pytest.mark.parametrize("numel", [SPAN, SPAN + 64, SPAN + 65, 2 * SPAN + 1])
def test_weights_larger_than_one_span(numel: int) -> None:
    weight = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    assert_same_as_bitsandbytes(weight, 64, double_quant=True)
    w4 = quantize(weight)
    assert oracle.same_bits(dequantize(w4), oracle.bnb_dequantize(w4, torch.float32))


def test_thresholds_reach_what_a_division_would_get_wrong() -> None:
    """The hard weights are hard enough: `x / c` in place of `x · (1 / c)` changes their codes."""
    random = torch.Generator().manual_seed(0)
    values = oracle.near_thresholds(64 * 1024, 64, random).view(-1, 64)
    peak = values.abs().amax(dim=1, keepdim=True)
    thresholds = torch.tensor(oracle.bnb.get_4bit_type("nf4", device="cpu").tolist())
    thresholds = (thresholds[:-1] + thresholds[1:]) / 2
    multiplied = torch.bucketize(values * (1.0 / peak), thresholds)
    divided = torch.bucketize(values / peak, thresholds)
    assert int((multiplied != divided).sum()) > 100


def test_tensors_that_are_not_contiguous() -> None:
    weight = torch.randn(70, 130, generator=torch.Generator().manual_seed(0))
    for view in (weight.T, weight[:, ::2], weight[3:, 1:]):
        assert_same_as_bitsandbytes(view, 64, double_quant=True)


def test_scalar() -> None:
    w4 = quantize(torch.tensor(-2.5))
    assert dequantize(w4).shape == ()
    assert dequantize(w4).item() == -2.5

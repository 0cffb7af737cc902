"""Properties of quantisation that hold whatever bitsandbytes does."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from graftlm.errors import ConfigError, ModelError
from graftlm.kernels.nf4 import dequantize, quantize
from graftlm.kernels.nf4.chunks import SPAN
from graftlm.kernels.nf4.codebook import nf4_levels
from graftlm.kernels.nf4.double_quant import block_scales
from graftlm.kernels.nf4.weight import NF4Weight
from tests.oracles import nf4_oracle as oracle

HALF_LARGEST_GAP = float(nf4_levels().diff().max()) / 2
ROUNDING = 1e-6

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def weights(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = oracle.DTYPES) -> torch.Tensor:
    """Normal weights of any small shape with block scales over ten decades, some rows zero."""
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 70))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(rows, columns, generator=random)
    weight *= 10.0 ** (torch.rand(rows, 1, generator=random) * 8 - 5)
    weight *= torch.rand(rows, 1, generator=random) < draw(st.sampled_from([0.7, 1.0]))
    return weight.to(draw(st.sampled_from(dtypes)))


block_sizes = st.sampled_from(oracle.BLOCK_SIZES)


@PROPERTY
@given(weights(), block_sizes)
def test_error_is_at_most_half_the_largest_gap_of_each_block(w: torch.Tensor, size: int) -> None:
    dense = dequantize(quantize(w, size, double_quant=False), torch.float32)
    errors = oracle.blocks_of(dense.double() - w.double(), size)
    for error, values in zip(errors, oracle.blocks_of(w, size), strict=True):
        bound = (HALF_LARGEST_GAP + ROUNDING) * float(values.abs().max())
        assert float(error.abs().max()) <= bound


@PROPERTY
@given(weights(), block_sizes)
def test_chosen_level_is_the_nearest(w: torch.Tensor, size: int) -> None:
    w4 = quantize(w, size, double_quant=False)
    assert float(oracle.distance_to_nearest_level(w, w4, nf4_levels()).max()) <= ROUNDING


@PROPERTY
@given(weights(), block_sizes)
def test_the_largest_of_a_block_and_zeros_survive_exactly(w: torch.Tensor, size: int) -> None:
    dense = dequantize(quantize(w, size, double_quant=False))
    assert bool((dense[w == 0] == 0).all())
    for before, after in zip(oracle.blocks_of(w, size), oracle.blocks_of(dense, size), strict=True):
        largest = before.abs().argmax()
        assert before[largest] == after[largest]


@PROPERTY
@given(weights(), block_sizes, st.booleans())
def test_quantising_again_keeps_the_codes(w: torch.Tensor, size: int, double: bool) -> None:
    once = quantize(w, size, double)
    again = quantize(dequantize(once, torch.float32), size, double_quant=False)
    # Double quantisation may leave a block of small values a scale of zero or below.
    kept = (block_scales(once) > 1e-30).repeat_interleave(size)[: w.numel()]
    assert torch.equal(oracle.unpack(again)[kept], oracle.unpack(once)[kept])


@PROPERTY
@given(weights((torch.float32, torch.bfloat16)), block_sizes, st.integers(-20, 20), st.booleans())
def test_powers_of_two_only_scale(w: torch.Tensor, size: int, power: int, double: bool) -> None:
    factor = 2.0**power
    plain, scaled = quantize(w, size, double), quantize(w * factor, size, double)
    assert torch.equal(plain.codes, scaled.codes)
    if double:
        assert torch.equal(plain.absmax, scaled.absmax)
    # The held-up maximum of a short block of zeros (1e-38) is a constant and scales with nothing.
    torch.testing.assert_close(
        block_scales(scaled), block_scales(plain) * factor, rtol=0, atol=1e-30
    )


@PROPERTY
@given(weights(), block_sizes)
def test_negation_mirrors_zero_and_the_ends(w: torch.Tensor, size: int) -> None:
    """The levels are not symmetric, but 0, -1 and 1 are shared: they mirror exactly."""
    codes, mirrored = oracle.unpack(quantize(w, size)), oracle.unpack(quantize(-w, size))
    assert torch.equal(codes == 15, (mirrored == 0) & (codes == 15))
    assert bool((mirrored[(w == 0).view(-1)] == 7).all())


@PROPERTY
@given(weights(), st.booleans())
def test_blocks_do_not_see_each_other(w: torch.Tensor, double: bool) -> None:
    whole = quantize(w, 32, double)
    head = quantize(w.reshape(-1)[:32], 32, double)
    assert torch.equal(oracle.unpack(whole)[:32], oracle.unpack(head))


@pytest.mark.parametrize(
    ("numel", "double", "bits"),
    [(64 * 256 * 64, True, 4 + 8 / 64 + 32 / (64 * 256)), (64 * 256 * 64, False, 4.5)],
)
def test_bits_per_parameter_are_those_of_the_paper(numel: int, double: bool, bits: float) -> None:
    w4 = quantize(torch.ones(numel), double_quant=double)
    assert w4.bits_per_parameter == pytest.approx(bits, abs=1e-4)


def test_padding_of_an_odd_weight_is_the_code_of_zero() -> None:
    assert int(quantize(torch.ones(3)).codes[-1]) & 15 == 7


def test_gradient_is_neither_needed_nor_kept() -> None:
    w4 = quantize(torch.nn.Parameter(torch.randn(8, 8)))
    assert not dequantize(w4).requires_grad


class LargestTensor(TorchDispatchMode):
    """Remembers the largest storage, in bytes, that any operation made or touched."""

    def __init__(self, ignore: set[int]) -> None:
        super().__init__()
        self.ignore, self.nbytes = ignore, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in self.ignore:
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return out


def test_no_temporary_grows_with_the_weight() -> None:
    """A span in float32 and the results: what 8 and 32 spans of weights need alike."""
    for spans in (8, 32):
        weight = torch.zeros(spans * SPAN, dtype=torch.bfloat16)
        inside = {weight.data_ptr() + 2 * SPAN * index for index in range(spans)}
        with LargestTensor(ignore=inside) as largest:
            w4 = quantize(weight, double_quant=False)
        assert largest.nbytes <= max(4 * SPAN, w4.codes.nbytes)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("position", [0, 64, 129])
def test_nan_and_infinity_are_refused_with_their_place(
    bad: float, dtype: torch.dtype, position: int
) -> None:
    weight = torch.randn(130).to(dtype)
    weight[position] = bad
    first, last = position // 64 * 64, min(position // 64 * 64 + 63, 129)
    with pytest.raises(ModelError, match=f"1 of 3 blocks.*elements {first} to {last} "):
        quantize(weight)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_empty_weight_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="at least one element"):
        quantize(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float64])
def test_types_without_an_nf4_form_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=r"expected float32, bfloat16 or float16.*\.float\(\)"):
        quantize(torch.zeros(64, dtype=dtype))


@pytest.mark.parametrize("size", [0, -64, 1, 48, 8192])
def test_unknown_block_size_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="expected one of"):
        quantize(torch.ones(64), size)


def test_weight_moves_between_devices_whole() -> None:
    w4 = quantize(torch.randn(8, 64)).to("meta")
    assert isinstance(w4, NF4Weight)
    assert {w4.device.type, w4.absmax.device.type, w4.offset.device.type} == {"meta"}

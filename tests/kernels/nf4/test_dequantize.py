"""Back to dense weights."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graftlm.errors import ModelError
from graftlm.kernels.nf4 import dequantize, quantize
from graftlm.kernels.nf4.codebook import nf4_levels
from graftlm.kernels.nf4.double_quant import block_scales
from tests.oracles import nf4_oracle as oracle


@pytest.mark.parametrize("dtype", [*oracle.DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("shape", oracle.SHAPES, ids=str)
def test_each_weight_is_its_level_times_its_scale(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    w4 = quantize(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    scales = block_scales(w4).double().repeat_interleave(w4.block_size)[: w4.numel]
    exact = nf4_levels().double()[oracle.unpack(w4)] * scales
    dense = dequantize(w4, dtype)
    assert dense.dtype == dtype
    assert dense.shape == shape
    assert torch.equal(dense, exact.float().to(dtype).reshape(shape))


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_type_defaults_to_that_of_the_original(dtype: torch.dtype) -> None:
    assert dequantize(quantize(torch.ones(8, 8, dtype=dtype))).dtype == dtype


def test_types_that_hold_no_fractions_are_refused() -> None:
    with pytest.raises(ModelError, match="floating-point"):
        dequantize(quantize(torch.ones(64)), torch.int8)


def test_runs_under_fake_tensors_and_leaves_no_trace() -> None:
    """Memory planning traces the model with tensors that hold no data."""
    w4 = quantize(torch.randn(48, 130))
    with FakeTensorMode() as mode:
        shadow = quantize_shadow(w4, mode)
        assert dequantize(shadow, torch.bfloat16).shape == (48, 130)
    assert not isinstance(dequantize(w4), type(shadow.codes))


def quantize_shadow(w4, mode):  # type: ignore[no-untyped-def]
    import dataclasses

    parts = {name: getattr(w4, name) for name in ("codes", "absmax", "nested_absmax", "offset")}
    return dataclasses.replace(w4, **{k: mode.from_tensor(v) for k, v in parts.items()})

"""`graftlm.nf4` runs the fast kernels; the reference is `graftlm.kernels.nf4`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graftlm
from graftlm.kernels import nf4 as reference
from graftlm.kernels.native import compiled, convert
from tests.oracles import nf4_oracle as oracle


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_public_functions_call_the_kernels_and_equal_the_reference_to_the_last_bit(
    dtype: torch.dtype, double_quant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled.extension() is None:
        pytest.skip(f"no native kernels here: {compiled.absence()}")
    called: list[str] = []

    class Counting:
        """The extension, with its calls written down."""

        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(compiled.extension(), name)

    monkeypatch.setattr(convert, "kernels", Counting)
    w = torch.randn(130, 96).to(dtype)
    ours = graftlm.nf4.quantize(w, 64, double_quant)
    assert "quantize" in called
    assert ("double_quantize" in called) == double_quant
    theirs = reference.quantize(w, 64, double_quant)
    assert oracle.differing_parts(ours, theirs) == []
    called.clear()
    dense = graftlm.nf4.dequantize(ours)
    assert "dequantize" in called
    assert oracle.same_bits(dense, reference.dequantize(theirs))

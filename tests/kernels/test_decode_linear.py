"""A few rows times a dense weight: against float64, on every instruction-set level."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftlm.errors import ModelError
from graftlm.frozen.int8_rows import Int8Rows
from graftlm.kernels.decode_linear import MOST_ROWS, few_rows_linear
from graftlm.models.fused import OutputLinear

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 8, 13])
@pytest.mark.parametrize("shape", [(1, 1), (37, 19), (300, 64), (2049, 640)])
def test_the_product_is_that_of_float64(
    level: str, shape: tuple[int, int], rows: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(shape).to(dtype), torch.randn(rows, shape[1]).to(dtype)
    y = few_rows_linear(x, weight)
    truth = x.double() @ weight.double().T
    assert y.dtype == dtype
    assert y.shape == truth.shape
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), truth, rtol=step, atol=1e-5 * shape[1] ** 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 13])
@pytest.mark.parametrize("shape", [(1, 1), (37, 19), (2049, 640)])
def test_a_weight_in_8_bits_is_multiplied_by_its_scales(
    level: str, shape: tuple[int, int], rows: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    stored, x = Int8Rows.quantize(torch.randn(shape)), torch.randn(rows, shape[1]).to(dtype)
    truth = x.double() @ (stored.codes.double() * stored.row_scale.double()[:, None]).T
    y = few_rows_linear(x, stored.codes, stored.row_scale)
    assert y.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), truth, rtol=step, atol=1e-5 * shape[1] ** 0.5)


def test_the_output_layer_shares_its_weight_and_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 500, bias=False).bfloat16()
    quick = OutputLinear(plain)
    assert quick.weight is plain.weight
    for rows in (1, MOST_ROWS, MOST_ROWS + 1):
        x = torch.randn(1, rows, 64).bfloat16()
        with torch.no_grad():
            torch.testing.assert_close(quick(x), plain(x), rtol=1e-2, atol=1e-2)
        assert torch.equal(quick(x), plain(x))  # with gradients: PyTorch's own


def test_opcheck_and_a_shape_that_does_not_fit() -> None:
    x, weight = torch.randn(2, 8), torch.randn(5, 8)
    torch.library.opcheck(torch.ops.graftlm.few_rows_linear, (x, weight, None))
    stored = Int8Rows.quantize(weight)
    torch.library.opcheck(torch.ops.graftlm.few_rows_linear, (x, stored.codes, stored.row_scale))
    with pytest.raises(ModelError, match="expected 8"):
        few_rows_linear(torch.randn(2, 4), weight)
    with pytest.raises(ModelError, match=r"expected \(5,\)"):
        few_rows_linear(x, stored.codes, stored.row_scale[:4])

"""The operators as PyTorch sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from graftlm.errors import ModelError
from graftlm.kernels import nf4, ops
from graftlm.kernels.products import weight_arguments

graftlm = torch.ops.graftlm


def weight(double_quant: bool = True) -> nf4.NF4Weight:
    w = torch.randn(24, 100, generator=torch.Generator().manual_seed(0))
    return nf4.quantize(w, 64, double_quant)


def calls() -> list[Any]:
    cases: list[Any] = [("nf4_quantize", (torch.randn(5, 33), 64))]
    for double_quant in (False, True):
        parts = weight_arguments(weight(double_quant))
        cases += [
            ("nf4_dequantize", (*parts, torch.bfloat16)),
            ("nf4_linear_backward", (torch.randn(2, 3, 24), *parts, "float32")),
            ("nf4_lora_linear", (_x(), *parts, None, *_update())),
            ("nf4_lora_linear_backward", (torch.randn(2, 3, 24), *parts, *_update(False))),
        ]
        for bias in (None, torch.randn(24, requires_grad=True)):
            cases.append(("nf4_linear", (_x(), *parts, bias, "float32")))
    dense = torch.randn(24, 100)
    return [
        *cases,
        ("lora_linear", (_x(), dense, torch.randn(24, requires_grad=True), *_update())),
        ("lora_linear_backward", (torch.randn(2, 3, 24), dense, *_update(False))),
    ]


def _x() -> torch.Tensor:
    return torch.randn(2, 3, 100, requires_grad=True)


def _update(trained: bool = True) -> tuple[Any, ...]:
    A, B = (torch.randn(shape, requires_grad=trained) for shape in ((4, 100), (24, 4)))
    return A, B, 0.5, "float32"


@pytest.mark.parametrize(("name", "arguments"), calls())
def test_operator_passes_opcheck(name: str, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(getattr(graftlm, name), arguments)


def test_shapes_are_known_without_data() -> None:
    stored = weight_arguments(weight())
    with FakeTensorMode() as mode:
        parts = [mode.from_tensor(p) if torch.is_tensor(p) else p for p in stored]
        x = torch.empty(2, 3, 100, dtype=torch.bfloat16)
        y = graftlm.nf4_linear(x, *parts, None, "bfloat16")
        assert (y.shape, y.dtype) == ((2, 3, 24), torch.bfloat16)
        assert graftlm.nf4_dequantize(*parts, torch.float16).shape == (24, 100)


def test_products_are_counted() -> None:
    x = torch.randn(5, 100, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        ops.linear(x, weight()).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 5 * 24 * 100


def test_products_with_an_update_are_counted() -> None:
    A, B, *rest = _update()
    with FlopCounterMode(display=False) as counter:
        ops.lora_linear(_x(), weight(), None, A, B, *rest).sum().backward()
    frozen, thin = 2 * 6 * 24 * 100, 2 * 6 * 4 * (24 + 100)
    assert counter.get_total_flops() == 2 * (frozen + thin) + thin  # and the factors' gradients


def test_compiles_whole() -> None:
    w4 = weight()
    compiled = torch.compile(lambda x: ops.linear(x, w4), backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 100)
    torch.testing.assert_close(compiled(x), ops.linear(x, w4))


@pytest.mark.parametrize("shape", [(3, 99), (100, 3), ()], ids=str)
def test_an_input_of_the_wrong_width_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"expected \(\.\.\., 100\)"):
        ops.linear(torch.randn(shape), weight())


def test_a_bias_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ModelError, match="bias"):
        ops.linear(torch.randn(3, 100), weight(), torch.randn(23))


def test_other_types_run_on_the_reference() -> None:
    w4, x = weight(), torch.randn(3, 100, dtype=torch.float64)
    truth = x @ nf4.dequantize(w4, torch.float64).T
    torch.testing.assert_close(ops.linear(x, w4), truth)

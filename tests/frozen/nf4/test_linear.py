from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from graftlm.frozen.weight import WeightSettings
from graftlm.kernels import nf4

STORED = ["codes", "absmax", "nested_absmax", "offset"]


def layer_pair(
    bias: bool = True, dtype: torch.dtype = torch.float32, **how: Any
) -> tuple[FrozenLinear, nn.Linear]:
    """A 4-bit layer, and the dense one it stands for."""
    torch.manual_seed(0)
    dense = nn.Linear(96, 40, bias=bias, dtype=dtype)
    quantized = FrozenLinear.of(dense, FrozenNF4, WeightSettings(**how))
    dense.weight.data = nf4.dequantize(quantized.frozen.stored, dtype)
    return quantized, dense


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", [(96,), (3, 96), (2, 5, 96), (0, 96)])
def test_output_is_that_of_the_dequantized_layer(
    shape: tuple[int, ...], double_quant: bool, bias: bool
) -> None:
    quantized, dense = layer_pair(bias, double_quant=double_quant, block_size=32)
    x = torch.randn(shape)
    torch.testing.assert_close(quantized(x), dense(x), rtol=1e-5, atol=1e-5)


def test_gradient_flows_to_the_input_and_to_nothing_else() -> None:
    quantized, dense = layer_pair()
    x = torch.randn(4, 96, requires_grad=True)
    y = torch.randn(4, 40)
    (found,) = torch.autograd.grad((quantized(x) * y).sum(), x)
    (expected,) = torch.autograd.grad((dense(x) * y).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert [p for p in quantized.parameters() if p.requires_grad] == []


def test_weight_is_the_one_it_was_built_from() -> None:
    weight = nf4.quantize(torch.randn(40, 96).bfloat16(), 128, True)
    layer = FrozenLinear(FrozenNF4(weight))
    assert (layer.out_features, layer.in_features) == (40, 96)
    found = layer.frozen.stored
    for field in (*STORED, "shape", "dtype", "block_size"):
        assert getattr(found, field) is getattr(weight, field) or getattr(found, field) == getattr(
            weight, field
        )


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_cast_changes_the_bias_and_no_stored_type(cast: str, double_quant: bool) -> None:
    layer, _ = layer_pair(double_quant=double_quant)
    before = {name: tensor.clone() for name, tensor in layer.named_buffers()}
    getattr(nn.Sequential(layer), cast)()
    assert dict(layer.named_buffers()).keys() == before.keys()
    for name, tensor in layer.named_buffers():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    expected = {"half": "float16"}.get(
        cast, {"float": "float32", "double": "float64"}.get(cast, cast)
    )
    assert layer.bias is not None
    assert layer.bias.dtype == getattr(torch, expected)


def test_moving_to_a_device_with_a_cast_moves_and_keeps_types() -> None:
    layer, _ = layer_pair()
    layer.to("meta", torch.float16)
    kinds = {name: tensor.dtype for name, tensor in layer.named_buffers()}
    expected = dict(
        zip(STORED, [torch.uint8, torch.uint8, torch.float32, torch.float32], strict=True)
    )
    assert kinds == expected
    assert all(tensor.is_meta for tensor in layer.buffers())
    assert layer.frozen.device.type == "meta"


@pytest.mark.parametrize("double_quant", [True, False])
def test_state_dict_round_trip_is_exact(double_quant: bool) -> None:
    layer, _ = layer_pair(double_quant=double_quant)
    other = FrozenLinear.of(nn.Linear(96, 40), FrozenNF4, WeightSettings(double_quant=double_quant))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 96)
    assert torch.equal(other(x), layer(x))


def test_deep_copy_is_independent() -> None:
    layer, _ = layer_pair()
    twin = copy.deepcopy(layer)
    twin.codes.zero_()
    assert layer.codes.any()
    assert twin.frozen.shape == layer.frozen.shape


def test_bfloat16_input_gives_bfloat16_output_with_a_float32_bias() -> None:
    layer, _ = layer_pair(dtype=torch.bfloat16)
    layer.bias = nn.Parameter(torch.randn(40))
    assert layer(torch.randn(2, 96, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.bias.dtype == torch.float32


def test_printed_form_says_how_it_is_stored() -> None:
    layer, _ = layer_pair(block_size=128, double_quant=False)
    assert repr(layer) == (
        "FrozenLinear(in_features=96, out_features=40, bias=True, format=nf4, block_size=128, "
        "double_quant=False)"
    )

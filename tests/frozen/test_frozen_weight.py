"""The contract of a frozen weight: what its defaults compute, and what the registry refuses."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftlm.config import ModelConfig
from graftlm.errors import ConfigError, ModelError
from graftlm.frozen.dense import DenseWeight
from graftlm.frozen.formats import DEFAULT_FORMAT, format_named, formats, register_format
from graftlm.frozen.int8_rows import Int8Rows
from graftlm.frozen.linear import FrozenLinear, frozen_weight
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from graftlm.frozen.weight import FrozenWeight, WeightSettings


class Halved(FrozenWeight):
    """Stores half of the weight, so that reading it raw shows."""

    format = "halved"

    def __init__(self, half: Tensor, dtype: torch.dtype) -> None:
        self.halves, self.shape, self.dtype = half, tuple(half.shape), dtype

    @classmethod
    def quantize(cls, weight: Tensor, settings: Any) -> Halved:
        return cls(weight.float() / 2, weight.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        return (self.halves * 2).to(dtype or self.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"halves": self.halves}

    def with_tensors(self, tensors: Any) -> Halved:
        return Halved(tensors["halves"], self.dtype)


FORMATS = [Halved, FrozenNF4, Int8Rows, DenseWeight]


def stored(format: type[FrozenWeight], dtype: torch.dtype = torch.float32) -> FrozenWeight:
    torch.manual_seed(0)
    return format.quantize(torch.randn(40, 64, dtype=dtype), WeightSettings())


@pytest.mark.parametrize("format", FORMATS)
def test_products_and_gradients_are_those_of_the_dense_weight(format: type[FrozenWeight]) -> None:
    weight = stored(format)
    dense = weight.dequantize()
    torch.manual_seed(1)
    inputs = [torch.randn(2, 5, 64), torch.randn(40), torch.randn(4, 64), torch.randn(40, 4)]
    for tensor in inputs:
        tensor.requires_grad_(True)
    x, bias, A, B = inputs
    plain = x @ dense.T + bias
    updated = plain + 0.5 * (x @ A.T) @ B.T
    results = [
        (weight.product(x, bias), plain, [x, bias]),
        (weight.product_with_update(x, bias, A, B, 0.5), updated, inputs),
    ]
    for ours, expected, wanted in results:
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        found = torch.autograd.grad(ours.sin().sum(), wanted)
        truth = torch.autograd.grad(expected.sin().sum(), wanted, retain_graph=True)
        torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_scales_and_sizes_are_those_of_the_dense_weight(format: type[FrozenWeight]) -> None:
    weight = stored(format, torch.bfloat16)
    assert (weight.shape, weight.dtype, weight.numel) == ((40, 64), torch.bfloat16, 2560)
    assert weight.dequantize().dtype == torch.bfloat16
    dense = weight.dequantize(torch.float32)
    ids = torch.tensor([[3, 39], [0, 3]])
    torch.testing.assert_close(weight.rows(ids), dense[ids], rtol=1e-2, atol=1e-2)
    matrix, row_scale, feature_scale = weight.scaled_rows(torch.float32)
    whole = matrix.float()
    whole = whole if row_scale is None else whole * row_scale[:, None]
    whole = whole if feature_scale is None else whole * feature_scale
    torch.testing.assert_close(whole, dense, rtol=1e-2, atol=1e-2)
    nbytes = sum(tensor.nbytes for tensor in weight.tensors().values())
    assert weight.nbytes == nbytes
    assert weight.bits_per_parameter == 8 * nbytes / 2560
    assert weight.scales <= weight.tensors().keys()


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_weight_has_the_sizes_and_types_of_a_stored_one(
    format: type[FrozenWeight], double_quant: bool
) -> None:
    settings = WeightSettings(32, double_quant)
    real = format.quantize(torch.randn(40, 64, dtype=torch.bfloat16), settings)
    empty = format.empty((40, 64), torch.bfloat16, settings, "meta")
    assert (empty.shape, empty.dtype) == (real.shape, real.dtype)
    kinds = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in weight.tensors().items()}
        for weight in (empty, real)
    ]
    assert kinds[0] == kinds[1]
    assert empty.settings() == real.settings()
    assert all(tensor.is_meta for tensor in empty.tensors().values())


@pytest.mark.parametrize("format", FORMATS)
def test_a_layer_holds_the_tensors_it_was_given_until_it_is_moved(
    format: type[FrozenWeight],
) -> None:
    weight = stored(format)
    layer = FrozenLinear(weight)
    for name, tensor in weight.tensors().items():
        assert layer.frozen.tensors()[name] is tensor
    twin = copy.deepcopy(layer)
    for tensor in twin.frozen.tensors().values():
        tensor.zero_()
    assert all(tensor.any() for tensor in layer.frozen.tensors().values())
    layer.to("meta")
    assert layer.frozen.device.type == "meta"
    assert all(tensor.is_meta for tensor in layer._frozen.tensors().values())  # none kept alive


@pytest.mark.parametrize("format", FORMATS)
def test_the_weight_of_a_layer_is_made_again_only_when_a_tensor_is_another(
    format: type[FrozenWeight],
) -> None:
    layer = FrozenLinear(stored(format))
    before = layer.frozen
    assert layer.frozen is before
    name, tensor = next(reversed(before.tensors().items()))
    setattr(layer, name, tensor.clone())
    assert layer.frozen is not before
    assert layer.frozen.tensors()[name] is getattr(layer, name)
    assert layer.frozen is layer.frozen


def test_frozen_weight_of_layers_that_only_multiply() -> None:
    linear = nn.Linear(6, 4).requires_grad_(False)
    turned = Conv1D(4, 6).requires_grad_(False)
    for layer in (linear, turned):
        weight = frozen_weight(layer)
        assert weight is not None
        assert weight.shape == (4, 6)
        x = torch.randn(3, 6)
        torch.testing.assert_close(weight.product(x, layer.bias), layer(x))

    class Own(nn.Linear):
        pass

    for layer in (nn.Linear(6, 4), Own(6, 4).requires_grad_(False), nn.LayerNorm(4)):
        assert frozen_weight(layer) is None


def test_model_code_may_read_the_weight_of_a_layer_and_not_write_it() -> None:
    layer = FrozenLinear(stored(FrozenNF4, torch.bfloat16))
    dense = layer.frozen.dequantize()
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.device.type) == ((40, 64), torch.bfloat16, "cpu")
    assert not weight.requires_grad
    assert not weight.data.requires_grad
    torch.testing.assert_close(weight + 0, dense, rtol=0, atol=0)
    assert torch.equal(weight.T[:3], dense.T[:3])
    x = torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)
    y = x @ weight.T
    assert torch.equal(y, x @ dense.T)
    (ours,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad((x @ dense.T).sum(), x)
    assert torch.equal(ours, expected)
    with pytest.raises(ModelError, match="stored as nf4"):
        weight.data.normal_()
    assert "nf4" in repr(weight)


@pytest.mark.parametrize("name", ["weight", "bias", "in_features", "training", "forward", "frozen"])
def test_a_tensor_named_as_an_attribute_of_the_layer_is_refused(name: str) -> None:
    class Named(Halved):
        def tensors(self) -> dict[str, Tensor]:
            return {name: self.halves}

    with pytest.raises(TypeError, match=f"names a tensor '{name}'"):
        FrozenLinear(Named.quantize(torch.randn(4, 4), None))


def test_the_registry_refuses_what_is_no_name_and_what_is_taken() -> None:
    assert set(formats()) >= {"int8", "nf4"}
    assert format_named("nf4") is FrozenNF4
    assert ModelConfig().weight_format == DEFAULT_FORMAT
    for name in ("", "with space", "none", "original", None):
        with pytest.raises(ConfigError, match="expected a name"):
            register_format(type("Bad", (Halved,), {"format": name}))
    with pytest.raises(ConfigError, match="'nf4' is taken"):
        register_format(type("Other", (Halved,), {"format": "nf4"}))
    assert register_format(FrozenNF4) is FrozenNF4  # a notebook runs its cell again


def test_an_installed_package_brings_its_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the entry point of a distribution, so that commands and other processes find it."""
    (tmp_path / "outside_format.py").write_text(
        "from graftlm.extend import register_format\n"
        "from graftlm.frozen.int8_rows import Int8Rows\n"
        "@register_format\n"
        "class Outside(Int8Rows):\n"
        "    format = 'outside8'\n"
    )
    info = tmp_path / "outside_format-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[graftlm.weight_formats]\noutside8 = outside_format:Outside\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("graftlm.frozen.formats._formats._classes", {})
    assert "outside8" in formats()
    assert "outside_format" not in sys.modules  # listing imports nothing
    assert format_named("outside8").__module__ == "outside_format"

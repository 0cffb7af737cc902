from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from graftlm.adapters.lora_linear import LoRALinear
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def base(kind: str, columns: int, rows: int) -> nn.Module:
    if kind == "conv1d":
        return Conv1D(rows, columns)
    linear = nn.Linear(columns, rows, bias=kind == "linear")
    return FrozenLinear.of(linear, FrozenNF4) if kind == "nf4" else linear


def randomised(layer: LoRALinear) -> LoRALinear:
    nn.init.normal_(layer.lora_B)
    return layer


def in_peft(layer: LoRALinear, dropout: float = 0.0) -> nn.Module:
    """PEFT's layer over the same base and adapter."""
    config = LoraConfig(
        r=layer.rank,
        lora_alpha=layer.alpha,
        target_modules=["0"],
        lora_dropout=dropout,
        use_rslora=layer.use_rslora,
        fan_in_fan_out=isinstance(layer.base, Conv1D),
    )
    model = inject_adapter_in_model(config, nn.Sequential(layer.base))
    with torch.no_grad():
        model[0].lora_A["default"].weight = nn.Parameter(layer.lora_A.detach().clone())
        model[0].lora_B["default"].weight = nn.Parameter(layer.lora_B.detach().clone())
    return model


@pytest.mark.parametrize("kind", ["linear", "conv1d", "nf4"])
def test_a_fresh_adapter_changes_nothing(kind: str) -> None:
    inner = base(kind, 12, 7)
    x = torch.randn(2, 3, 12)
    assert torch.equal(LoRALinear(inner, 4, 8)(x), inner(x))


def test_the_first_matrix_is_drawn_as_torch_draws_a_linear_layer_and_the_second_is_zero() -> None:
    torch.manual_seed(3)
    layer = LoRALinear(nn.Linear(12, 7), 4, 8)
    torch.manual_seed(3)
    nn.Linear(12, 7)
    expected = nn.init.kaiming_uniform_(torch.empty(4, 12), a=math.sqrt(5))
    assert torch.equal(layer.lora_A, expected)
    assert not layer.lora_B.any()


@pytest.mark.parametrize("kind", ["linear", "conv1d", "nf4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adapters_are_float32_whatever_the_base(kind: str, dtype: torch.dtype) -> None:
    layer = LoRALinear(base(kind, 12, 7).to(dtype), 4, 8)
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["linear", "conv1d"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    columns=st.integers(1, 40),
    rows=st.integers(1, 40),
    rank=st.integers(1, 9),
    use_rslora=st.booleans(),
    batch=st.lists(st.integers(1, 4), max_size=2),
)
def test_forward_equals_peft_to_rounding(
    kind: str,
    dtype: torch.dtype,
    columns: int,
    rows: int,
    rank: int,
    use_rslora: bool,
    batch: list[int],
) -> None:
    layer = randomised(LoRALinear(base(kind, columns, rows).to(dtype), rank, 3.0, 0.0, use_rslora))
    x = torch.randn(*batch, 1, columns, dtype=dtype)
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(layer(x), in_peft(layer)(x), rtol=rounding, atol=rounding * rank)


def test_dropout_draws_as_peft_does_and_only_while_training() -> None:
    layer = randomised(LoRALinear(nn.Linear(12, 7), 4, 8, dropout=0.5))
    theirs = in_peft(layer, dropout=0.5)
    x = torch.randn(5, 12)
    torch.manual_seed(0)
    dropped = layer(x)
    torch.manual_seed(0)
    torch.testing.assert_close(dropped, theirs(x))
    assert not torch.equal(dropped, layer.eval()(x))


def test_autocast_matches_peft() -> None:
    layer = randomised(LoRALinear(nn.Linear(12, 7), 4, 8))
    x = torch.randn(5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(x), in_peft(layer)(x)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "nf4"])
def test_delta_folded_into_the_weight_gives_the_same_output(kind: str) -> None:
    layer = randomised(LoRALinear(base(kind, 12, 7), 4, 8))
    x = torch.randn(5, 12, dtype=torch.float32)
    delta = layer.delta()
    torch.testing.assert_close(layer.base(x) + x @ delta.T, layer(x))
    assert delta.dtype == torch.float32


def test_gradients_equal_those_of_the_dense_product_in_float64() -> None:
    layer = randomised(LoRALinear(nn.Linear(12, 7).requires_grad_(False), 4, 8))
    x = torch.randn(5, 12, requires_grad=True)
    layer(x).square().sum().backward()
    weight, bias, a, b = (
        t.detach().double().requires_grad_()
        for t in (layer.base.weight, layer.base.bias, layer.lora_A, layer.lora_B)
    )
    x64 = x.detach().double().requires_grad_()
    (x64 @ (weight + 2 * b @ a).T + bias).square().sum().backward()
    for ours, truth in ((x, x64), (layer.lora_A, a), (layer.lora_B, b)):
        torch.testing.assert_close(ours.grad, truth.grad, rtol=1e-4, atol=1e-3, check_dtype=False)
    assert layer.base.weight.grad is None


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_needs_no_gradient_on_the_input(use_reentrant: bool) -> None:
    layer = randomised(LoRALinear(base("nf4", 64, 16), 4, 8))
    x = torch.randn(5, 64, requires_grad=use_reentrant)  # the reentrant kind asks for one

    def gradient(run: Any) -> Tensor:
        layer.lora_A.grad = None
        run(x).square().sum().backward()
        assert layer.lora_A.grad is not None
        return layer.lora_A.grad

    plain = gradient(layer)
    again = gradient(lambda x: checkpoint(layer, x, use_reentrant=use_reentrant))
    assert torch.equal(plain, again)


def test_disabled_is_the_base() -> None:
    layer = randomised(LoRALinear(nn.Linear(12, 7), 4, 8))
    x = torch.randn(5, 12)
    layer.enabled = False
    assert torch.equal(layer(x), layer.base(x))


def test_a_module_that_is_no_linear_layer_is_refused() -> None:
    with pytest.raises(TypeError, match="LayerNorm is not a linear layer"):
        LoRALinear(nn.LayerNorm(4), 2, 2)

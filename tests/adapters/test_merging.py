from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from graftlm.adapters import add_lora, lora_modules, lora_parameters, merge_adapters, merge_in_place
from graftlm.adapters.rounding import round_once
from graftlm.config import LoRAConfig
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from tests.oracles.model_families import FAMILIES, tiny_model

IDS = torch.arange(1, 25).view(2, 12)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def adapted(family: str, targets: str | tuple[str, ...] = "all-linear") -> nn.Module:
    model = tiny_model(family)
    return with_adapters(model, targets)


def with_adapters(model: nn.Module, targets: str | tuple[str, ...] = "all-linear") -> nn.Module:
    add_lora(model, LoRAConfig(rank=4, alpha=8, targets=targets))
    torch.manual_seed(5)
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize("family", list(FAMILIES))
def test_merge_equals_base_plus_delta(family: str) -> None:
    model = adapted(family)
    expected = logits(model)
    names = tuple(lora_modules(model))
    report = merge_adapters(model)
    assert report.merged == names
    assert not report.untied
    assert type(model) is type(tiny_model(family))
    kinds = {n: type(m) for n, m in tiny_model(family).named_modules()}
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=2e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    scale=st.floats(1e-4, 10),
)
def test_a_merged_weight_is_the_float64_sum_rounded_once(
    seed: int, dtype: torch.dtype, scale: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(9, 5, generator=draw).to(dtype)
    delta = torch.randn(9, 5, generator=draw) * scale
    merged, rounding = round_once(weight, weight.float() + delta, delta)
    truth = weight.double() + delta.double()
    # Half a unit in the last place of the result, and one of the float32 sum.
    unit = torch.finfo(dtype).eps * truth.abs().clamp(min=torch.finfo(dtype).tiny)
    float32_unit = torch.finfo(torch.float32).eps * truth.abs()
    assert merged.dtype == dtype
    assert ((merged.double() - truth).abs() <= unit / 2 + float32_unit).all()
    assert rounding.largest == float((merged.float() - (weight.float() + delta)).abs().max())


def test_bfloat16_reports_its_rounding_and_float32_has_none() -> None:
    exact = merge_adapters(adapted("llama"))
    assert exact.largest_rounding == 0
    rounded = merge_adapters(with_adapters(tiny_model("llama", torch.bfloat16)))
    assert 0 < rounded.largest_rounding < 2**-8 * 2
    assert f"{rounded.largest_rounding:.2e}" in str(rounded)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-6, 1))
def test_the_share_that_survives_rounding_is_that_of_a_float64_projection(
    seed: int, scale: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(33, 20, generator=draw).bfloat16()
    delta = torch.randn(33, 20, generator=draw) * scale
    delta[0] = 0
    merged, rounding = round_once(weight, weight.float() + delta, delta)
    change, exact = merged.double() - weight.double(), delta.double()
    kept = float((change * exact).sum() / exact.square().sum())
    assert rounding.update_kept == pytest.approx(kept, rel=1e-5, abs=1e-9)
    assert rounding.weights_changed == float((change[1:] != 0).double().mean())


def test_only_weights_with_an_update_count_as_changed() -> None:
    weight, delta = torch.full((4, 4), 1.001), torch.zeros(4, 4)
    delta[0] = 0.5
    _, rounding = round_once(
        weight, weight.float() + delta, delta, torch.bfloat16
    )  # rounds the other rows too
    assert rounding.weights_changed == 1


def test_an_update_too_small_for_bfloat16_is_said_to_be_lost() -> None:
    model = tiny_model("llama", torch.bfloat16)
    with_adapters(model)
    with torch.no_grad():
        for name, parameter in lora_parameters(model):
            parameter.mul_(1e-5 if name.endswith("lora_B") else 1)
    report = merge_adapters(model)
    assert report.update_kept < 0.9
    assert report.weights_changed < 0.5
    assert f"{report.update_kept:.1%} of the update survives" in str(report)
    whole = merge_adapters(adapted("llama"))
    assert whole.update_kept == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("targets", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")])
@pytest.mark.parametrize("family", ["llama-tied", "gemma3"])
def test_merging_one_end_of_a_tie_parts_the_two_and_keeps_the_logits(
    family: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    model = adapted(family, targets)
    expected = logits(model)
    report = merge_adapters(model)
    assert report.untied
    assert "no longer shares" in str(report)
    assert model.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_4_bit_layers_become_the_layers_of_the_model_class(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    for name, module in list(model.named_modules()):
        if name == "lm_head" or not isinstance(module, (nn.Linear, Conv1D)):
            continue
        linear = nn.Linear(1, 1)
        weight = module.weight.T.contiguous() if isinstance(module, Conv1D) else module.weight
        linear.weight, linear.bias = nn.Parameter(weight), module.bias
        model.set_submodule(name, FrozenLinear.of(linear, FrozenNF4))
    target = "c_attn" if family == "gpt2" else "q_proj"
    with_adapters(model, (target,))
    expected = logits(model)
    merged = merge_in_place(model)
    kinds = {n: type(m) for n, m in tiny_model(family).named_modules()}
    assert {n: type(m) for n, m in merged.named_modules()} == kinds
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=2e-5)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(merged))

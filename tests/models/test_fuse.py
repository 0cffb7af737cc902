"""Fused elementwise modules: which families get them, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from graftlm.models.fuse import fuse_gated_units, fuse_norms
from graftlm.models.fused import GatedMLP, RMSNorm

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[Any, int, int]] = {  # config, norms and feed-forward layers replaced
    "llama": (LlamaConfig(**SIZES), 5, 2),
    "mistral": (MistralConfig(**SIZES), 5, 2),
    "qwen3": (Qwen3Config(**SIZES), 9, 2),
    "gemma2": (Gemma2Config(**SIZES), 9, 2),
    "gemma3": (Gemma3TextConfig(**SIZES), 13, 2),
    "olmo2": (Olmo2Config(**SIZES), 9, 2),
    "phi3": (Phi3Config(**SIZES), 5, 0),  # gate and input are one projection
    "gpt2": (GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2), 0, 0),
    "falcon": (
        FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
        0,
        0,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_model_has_the_same_logits_gradients_and_names(family: str) -> None:
    config, norms, layers = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.eval()
    ids = torch.randint(1, 64, (2, 9))
    before = _logits_and_gradients(model, ids)
    assert (len(fuse_norms(model)), len(fuse_gated_units(model))) == (norms, layers)
    assert sum(isinstance(m, RMSNorm) for m in model.modules()) == norms
    assert sum(isinstance(m, GatedMLP) for m in model.modules()) == layers
    after = _logits_and_gradients(model, ids)
    assert before.keys() == after.keys()
    for name, value in before.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-5 * scale + 1e-7)
    assert fuse_norms(model) == fuse_gated_units(model) == []


def _logits_and_gradients(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output = model(input_ids=ids, labels=ids)
    output.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"logits": output.logits.detach()}


class CentredRMSNorm(nn.Module):
    """Named like the others, but it subtracts the mean."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight, None, self.eps)


def test_a_class_that_computes_something_else_keeps_its_own_code() -> None:
    model = nn.Sequential(CentredRMSNorm(8))
    assert fuse_norms(model) == []
    assert isinstance(model[0], CentredRMSNorm)


def test_a_model_without_values_is_fused_too() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(FAMILIES["gemma3"][0])
    assert (len(fuse_norms(model)), len(fuse_gated_units(model))) == (13, 2)
    assert all(p.is_meta for p in model.parameters())


class ClampedMLP(LlamaMLP):
    """As DeepSeek-V4's shared experts: the clamp is met by large values only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(x).clamp(max=10.0), self.up_proj(x).clamp(-10.0, 10.0)
        return self.down_proj(self.act_fn(gate) * up)


class ScaledMLP(LlamaMLP):
    """As Falcon-H1's: two models of one class and one activation, with other multipliers."""

    multipliers = (1.0, 1.0)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.gate_multiplier, self.down_multiplier = self.multipliers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up_proj(x) * self.act_fn(self.gate_proj(x) * self.gate_multiplier)
        return self.down_proj(y) * self.down_multiplier


class DroppingMLP(LlamaMLP):
    """Another in training than in evaluation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


def test_a_clamp_is_met() -> None:
    model = nn.Sequential(ClampedMLP(FAMILIES["llama"][0]), LlamaMLP(FAMILIES["llama"][0]))
    assert fuse_gated_units(model) == ["1"]


def test_dropout_is_met() -> None:
    assert fuse_gated_units(nn.Sequential(DroppingMLP(FAMILIES["llama"][0]))) == []


def test_each_instance_is_judged_by_its_own_scales() -> None:
    for multipliers, fused in (((1.0, 1.0), ["0"]), ((0.5, 1.0), []), ((1.0, 0.3), [])):
        layer = ScaledMLP(FAMILIES["llama"][0])
        layer.gate_multiplier, layer.down_multiplier = multipliers
        assert fuse_gated_units(nn.Sequential(layer)) == fused
    layers = [ScaledMLP(FAMILIES["llama"][0]) for _ in range(3)]
    layers[1].gate_multiplier = 0.5
    assert fuse_gated_units(nn.Sequential(*layers)) == ["0", "2"]


def test_a_grouped_norm_is_not_a_plain_one() -> None:
    from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextRMSNorm

    model = nn.Sequential(Qwen4ExpTextRMSNorm(32, group_size=8), Qwen4ExpTextRMSNorm(32))
    assert fuse_norms(model) == ["1"]
    assert model[1].shift == 1.0


def test_multipliers_of_falcon_h1_are_kept() -> None:
    from transformers import FalconH1Config
    from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1MLP

    for multipliers, fused in (([1.0, 1.0], ["0"]), ([0.3, 0.7], []), ([1.0, 1.0], ["0"])):
        config = FalconH1Config(hidden_size=32, intermediate_size=48, mlp_multipliers=multipliers)
        assert fuse_gated_units(nn.Sequential(FalconH1MLP(config))) == fused


def test_the_clamp_of_deepseek_v4_is_kept() -> None:
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as deepseek

    config = deepseek.DeepseekV4Config(hidden_size=32, moe_intermediate_size=48)
    layer = next(
        kind
        for name, kind in vars(deepseek).items()
        if name.endswith("MLP") and issubclass(kind, nn.Module)
    )
    assert fuse_gated_units(nn.Sequential(layer(config))) == []


def test_a_module_is_as_it_was_after_the_question() -> None:
    layer = ClampedMLP(FAMILIES["llama"][0]).train()
    norm = CentredRMSNorm(8).eval()
    model = nn.Sequential(layer, norm)
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    modules = {name: id(module) for name, module in model.named_modules()}
    state = torch.random.get_rng_state()
    assert fuse_norms(model) == fuse_gated_units(model) == []
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert (layer.training, norm.training) == (True, False)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_values_is_decided_as_one_with_them(family: str) -> None:
    config = FAMILIES[family][0]
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    real = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert fuse_norms(empty) == fuse_norms(real)
    assert fuse_gated_units(empty) == fuse_gated_units(real)

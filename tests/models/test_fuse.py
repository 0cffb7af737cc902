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

from graftlm.models.fuse import fuse_elementwise
from graftlm.models.fused.gated_mlp import GatedMLP
from graftlm.models.fused.rms_norm import RMSNorm

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
    "falcon": (FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2), 0, 0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_model_has_the_same_logits_gradients_and_names(family: str) -> None:
    config, norms, layers = FAMILIES[family]
    if family == "falcon":
        config.num_attention_heads = 2
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.eval()
    ids = torch.randint(1, 64, (2, 9))
    before = _logits_and_gradients(model, ids)
    assert fuse_elementwise(model) == norms + layers
    assert sum(isinstance(m, RMSNorm) for m in model.modules()) == norms
    assert sum(isinstance(m, GatedMLP) for m in model.modules()) == layers
    after = _logits_and_gradients(model, ids)
    assert before.keys() == after.keys()
    for name, value in before.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-5 * scale + 1e-7)
    assert fuse_elementwise(model) == 0


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
    assert fuse_elementwise(model) == 0
    assert isinstance(model[0], CentredRMSNorm)


def test_a_model_without_values_is_fused_too() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(FAMILIES["gemma3"][0])
    assert fuse_elementwise(model) == 15
    assert all(p.is_meta for p in model.parameters())

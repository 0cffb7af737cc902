"""Attention layers with rotary embedding in one pass: which are replaced, and what stays."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention

from graftlm.adapters import add_lora
from graftlm.config import LoRAConfig
from graftlm.kernels import implement, operators, withdraw
from graftlm.models import load_model
from graftlm.models.rotary_attention import RotaryAttention, fuse_rotary
from tests.oracles.model_families import FAMILIES, tiny_config, tiny_model
from tests.oracles.tiny_architectures import tiny_model as tiny_architecture

REPLACED = {"llama", "llama-tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "mixtral"}
IDS = torch.arange(2 * 24).view(2, 24) % 90


def results(model: Any) -> dict[str, Tensor]:
    """Logits and the gradients of all parameters."""
    model.zero_grad()
    logits = model(IDS).logits
    logits.float().logsumexp(-1).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"logits": logits.detach()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_replaced_layer_has_the_same_bits_and_names(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype)
    before, names = results(model), [name for name, _ in model.named_modules()]
    replaced = fuse_rotary(model)
    assert len(replaced) == (2 if family in REPLACED else 0)
    assert all(isinstance(model.get_submodule(name), RotaryAttention) for name in replaced)
    after = results(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [name for name, _ in model.named_modules()] == names
    assert fuse_rotary(model) == []


@pytest.mark.parametrize("model_type", ["glm4_moe", "granitemoehybrid", "phi", "ernie4_5_moe"])
def test_a_layer_that_turns_a_part_of_each_head_or_none(model_type: str) -> None:
    model = tiny_architecture(model_type)
    before = results(model)
    replaced = fuse_rotary(model)
    assert bool(replaced) == (model_type in ("glm4_moe", "granitemoehybrid"))
    after = results(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("family", sorted(REPLACED))
def test_a_model_without_values_is_decided_as_one_with_them(family: str) -> None:
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(tiny_config(family))
    assert fuse_rotary(empty) == fuse_rotary(tiny_model(family, torch.bfloat16)) != []
    assert all(p.is_meta for p in empty.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_same_answers(family: str) -> None:
    model = tiny_model(family)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[1, :5] = 0
    expected = model.generate(IDS, attention_mask=mask, **settings)
    assert fuse_rotary(model)
    assert torch.equal(model.generate(IDS, attention_mask=mask, **settings), expected)
    model.set_attn_implementation("eager")  # the user's choice stays possible
    assert torch.equal(model.generate(IDS, attention_mask=mask, **settings), expected)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_kernel_turns_queries_and_keys(family: str) -> None:
    """With a kernel, here the reference in its place, the model computes the same."""
    model = tiny_model(family)
    before = results(model)
    calls: list[bool] = []

    def kernel(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
        calls.append(back)
        turned: Tensor = operators()["rotary"].reference(x, cos, sin, back)
        return turned

    fuse_rotary(model)
    added = implement("rotary", "cpu", kernel)
    try:
        after = results(model)
    finally:
        withdraw(added)
    assert sorted(calls) == [False] * 4 + [True] * 4  # two layers, queries and keys
    for name, value in before.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-5 * scale + 1e-7)


class ScaledAttention(LlamaAttention):
    """Multiplies its angles or its result, in training or always."""

    factors = (1.0, 1.0)
    in_evaluation = True

    def forward(
        self,
        hidden_states: Any,
        position_embeddings: Any,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        angles = tuple(self.factors[0] * t for t in position_embeddings)
        y, weights = super().forward(
            hidden_states, angles, attention_mask, past_key_values, **kwargs
        )
        return self.factors[1] * y if self.training or self.in_evaluation else y, weights


def test_a_layer_that_computes_something_else_keeps_its_own_code() -> None:
    layers = nn.Sequential(*(ScaledAttention(tiny_config("llama"), 0) for _ in range(4)))
    layers[1].factors, layers[2].factors = (0.5, 1.0), (1.0, 3.0)
    before = {name: id(tensor) for name, tensor in layers.named_parameters()}
    state = torch.random.get_rng_state()
    assert fuse_rotary(layers) == ["0", "3"]
    assert type(layers[1]) is type(layers[2]) is ScaledAttention
    assert layers[1].config._attn_implementation != "graftlm_proof"
    assert {name: id(tensor) for name, tensor in layers.named_parameters()} == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_layer_that_differs_in_training_only_is_met() -> None:
    layer = ScaledAttention(tiny_config("llama"), 0).eval()
    layer.factors, layer.in_evaluation = (1.0, 2.0), False
    assert fuse_rotary(nn.Sequential(layer)) == []
    assert not layer.training


def test_another_rotary_function_in_the_same_class_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        turned = [torch.stack((-t[..., 1::2], t[..., ::2]), -1).flatten(-2) for t in (q, k)]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + turned[0] * sin, k * cos + turned[1] * sin

    layer = nn.Sequential(LlamaAttention(tiny_config("llama"), 0))
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", interleaved)
    assert fuse_rotary(layer) == []
    monkeypatch.undo()
    assert fuse_rotary(layer) == ["0"]


def test_adapters_find_the_layers_by_name() -> None:
    model = tiny_model("qwen3")
    fuse_rotary(model)
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj", "o_proj")))
    adapted = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(adapted) == 2 * 2 * 2
    assert all("self_attn" in name for name in adapted)


def test_transformers_still_records_the_weights_of_attention(tiny_llama: Path) -> None:
    """It finds the layers by their class."""
    ids, found = torch.tensor([[1, 2, 3]]), []
    for replaced in ((), ("rotary",)):
        model, _ = load_model(tiny_llama, quantize=None, replacements=replaced)
        model.set_attn_implementation("eager")
        found.append(model(ids, output_attentions=True).attentions)
        assert len(found[-1]) == model.config.num_hidden_layers
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_a_replaced_layer_is_copied_and_pickled(tiny_llama: Path) -> None:
    model, _ = load_model(tiny_llama, quantize=None, replacements=("rotary",))
    ids = torch.tensor([[1, 2, 3]])
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        layer = again.model.layers[0].self_attn
        assert isinstance(layer, RotaryAttention)
        assert isinstance(layer, LlamaAttention)
        assert torch.equal(again(ids).logits, model(ids).logits)

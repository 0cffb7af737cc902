"""Fused experts in a weight format: stored, computed, put back; transformers is the oracle."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from graftlm.frozen.experts import DenseExperts, FrozenExperts
from graftlm.frozen.linear import FrozenLinear
from graftlm.kernels import nf4
from graftlm.models import assembly_report, load_model
from graftlm.models.experts import expert_weights, hold, release
from graftlm.models.replaced import Replacement
from tests.oracles.tiny_architectures import tiny_model

ARCHITECTURES = {  # the parameters of one layer
    "mixtral": ["gate_up_proj", "down_proj"],
    "qwen2_moe": ["gate_up_proj", "down_proj"],
    "qwen3_moe": ["gate_up_proj", "down_proj"],
    "olmoe": ["gate_up_proj", "down_proj"],
    "gpt_oss": ["gate_up_proj", "down_proj"],
    "deepseek_v3": ["gate_up_proj", "down_proj"],
    "glm4_moe": ["gate_up_proj", "down_proj"],
    "granitemoe": ["gate_up_proj", "down_proj"],
    "phimoe": ["gate_up_proj", "down_proj"],
    "qwen3_next": ["gate_up_proj", "down_proj"],
    "nemotron_h": ["up_proj", "down_proj"],
    "llama4_text": ["gate_up_proj", "down_proj"],
    "longcat_flash": ["gate_up_proj", "down_proj"],
    "jetmoe": ["weight"],
}
IDS = torch.arange(1, 41).view(2, 20)


def held_dense(model: nn.Module) -> list[str]:
    names = []
    for name, weight in expert_weights(model).items():
        hold(weight, DenseExperts(getattr(weight.module, weight.leaf), weight.transposed))
        names.append(name)
    return names


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_experts_give_the_logits_and_gradients_of_transformers(kind: str) -> None:
    model = tiny_model(kind)
    ours = copy.deepcopy(model)
    held = held_dense(ours)
    assert {name.rpartition(".")[2] for name in held} == set(ARCHITECTURES[kind])
    model.set_experts_implementation("eager")
    results = []
    for one in (model, ours):
        embedded = one.get_input_embeddings()(IDS).detach().requires_grad_()
        loss = one(inputs_embeds=embedded, labels=IDS, use_cache=False).loss
        loss.backward()
        results.append((loss.detach(), embedded.grad))
    (loss, gradient), (our_loss, our_gradient) = results
    torch.testing.assert_close(our_loss, loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "llama4_text", "longcat_flash", "jetmoe"])
def test_release_gives_the_model_of_before(kind: str) -> None:
    model = tiny_model(kind)
    before = [(name, parameter) for name, parameter in model.named_parameters()]
    implementation = model.get_experts_implementation()
    attributes = {name: {*vars(module)} for name, module in model.named_modules()}
    weights = expert_weights(model)
    held = held_dense(model)
    assert expert_weights(model) == {}
    for name in held:
        release(weights[name].module, weights[name].leaf)
    after = [(name, parameter) for name, parameter in model.named_parameters()]
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(one is other for (_, one), (_, other) in zip(before, after, strict=True))
    experts = next(iter(weights.values())).module
    assert getattr(experts, "config", model.config) is model.config
    assert {name: {*vars(module)} for name, module in model.named_modules()} == attributes
    assert model.get_experts_implementation() == implementation


@pytest.mark.parametrize(
    "kind",
    ["mixtral", "qwen3_moe", "gpt_oss", "nemotron_h", "llama4_text", "longcat_flash", "jetmoe"],
)
def test_loaded_experts_are_the_dequantized_ones(
    kind: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    tiny_model(kind).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, quantize="nf4")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    stacks = {n: m for n, m in model.named_modules() if isinstance(m, FrozenExperts)}
    weights = expert_weights(plain)
    assert stacks.keys() == weights.keys()
    said = Replacement("weight_format", len(stacks), "Parameter", "FrozenExperts")
    assert said in assembly_report(model).replaced
    assert not [name for name, p in model.named_parameters() if p.ndim == 3 and "conv" not in name]
    for name, weight in weights.items():
        fused = getattr(weight.module, weight.leaf).data
        stack = stacks[name]
        assert stack.shape == weight.shape
        for expert, one in enumerate(fused):
            matrix = one.T.contiguous() if weight.transposed else one
            lossy = nf4.dequantize(nf4.quantize(matrix))
            assert torch.equal(stack.dense(expert), lossy)
            fused[expert] = lossy.T if weight.transposed else lossy
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            layer = model.get_submodule(name)
            if isinstance(layer, FrozenLinear):
                module.weight.data = layer.frozen.dequantize()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)
    bits = sum(8 * m.nbytes for s in stacks.values() for m in s.matrices())
    assert bits < 4.6 * sum(s.shape[0] * s.shape[1] * s.shape[2] for s in stacks.values())


def test_experts_without_tokens_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(4, 8, 64)
    stack = DenseExperts(nn.Parameter(weight), transposed=False)
    read: list[int] = []
    matrix = stack.matrix
    monkeypatch.setattr(stack, "matrix", lambda e: (read.append(e), matrix(e))[1])
    x = torch.randn(5, 64)
    y = stack(x, [2, 0, 3, 0])
    assert read == [0, 2]
    torch.testing.assert_close(y, torch.cat([x[:2] @ weight[0].T, x[2:] @ weight[2].T]))
    assert stack(x[:0], [0, 0, 0, 0]).shape == (0, 8)

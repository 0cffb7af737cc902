"""Training through the merge: the value is the merged layer's, the gradient is LoRA's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from graftlm.adapters import (
    add_lora,
    disable_adapters,
    lora_config,
    lora_modules,
    lora_parameters,
    merge_in_place,
    original_weights,
    train_through_merge,
)
from graftlm.config import LoRAConfig
from graftlm.errors import ConfigError
from graftlm.frozen.nf4 import dequantize, quantize
from graftlm.models import load_model
from tests.oracles.model_families import tiny_model

IDS = torch.arange(1, 25).view(2, 12)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: Any, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("base") / request.param
    tiny_model(request.param).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def through(base: Path, std: float = 0.1) -> Any:
    model, _ = load_model(base, quantize="nf4")
    torch.manual_seed(0)
    add_lora(model, LoRAConfig(rank=4, alpha=8))
    train_through_merge(model, original_weights(str(base)))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=std)
    return model


def test_each_layer_is_the_quantised_merge_with_the_straight_through_gradient(base: Path) -> None:
    model, original = through(base), original_weights(str(base))
    name, adapter = next(iter(lora_modules(model).items()))
    A, B = adapter.lora_A.detach(), adapter.lora_B.detach()
    W = original(name)
    exact = W.float() + (B @ A) * adapter.scaling
    Q = dequantize(quantize(exact), torch.float32).requires_grad_(True)
    x = torch.randn(3, 5, W.shape[1], requires_grad=True)
    x_oracle = x.detach().clone().requires_grad_(True)
    y = adapter(x)
    expected = F.linear(x_oracle, Q, adapter.base.bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy)
    assert Q.grad is not None
    torch.testing.assert_close(x.grad, x_oracle.grad, rtol=1e-4, atol=1e-4)
    # The straight-through rule: dL/dA = s Bᵀ G and dL/dB = s G Aᵀ, with G = dL/dQ.
    for found, oracle in (
        (adapter.lora_A.grad, adapter.scaling * B.T @ Q.grad),
        (adapter.lora_B.grad, adapter.scaling * Q.grad @ A.T),
    ):
        torch.testing.assert_close(found, oracle, rtol=1e-3, atol=1e-3)


def test_the_stored_weights_follow_the_adapter_and_are_made_once_a_change(base: Path) -> None:
    model, calls = through(base), []
    adapters = lora_modules(model)
    for name, adapter in adapters.items():
        read = adapter.through._read
        adapter.through._read = lambda read=read, name=name: (calls.append(name), read())[1]
    with torch.no_grad():
        first = model(input_ids=IDS).logits
        again = model(input_ids=IDS).logits
        assert sorted(calls) == sorted(adapters)
        next(lora_parameters(model))[1].add_(0.3)
        changed = model(input_ids=IDS).logits
    assert torch.equal(first, again)
    assert not torch.equal(first, changed)
    assert len(calls) == len(adapters) + 1


def test_switched_off_it_is_the_plain_base(base: Path) -> None:
    model = through(base)
    with torch.no_grad():
        on = model(input_ids=IDS).logits
        with disable_adapters(model):
            off = model(input_ids=IDS).logits
        expected = load_model(base, quantize="nf4")[0](input_ids=IDS).logits
        assert torch.equal(off, expected)
        assert torch.equal(model(input_ids=IDS).logits, on)


def test_merging_in_memory_gives_the_live_model(base: Path) -> None:
    model = through(base)
    with torch.no_grad():
        live = model(input_ids=IDS).logits
        merged = merge_in_place(model)(input_ids=IDS).logits
    torch.testing.assert_close(merged, live, rtol=0, atol=5e-5)


def test_the_settings_of_a_model_in_hand_record_it(base: Path) -> None:
    assert lora_config(through(base)).merge_aware == "nf4"


def test_what_cannot_train_through_a_merge_is_refused(base: Path, tmp_path: Path) -> None:
    dense, _ = load_model(base, quantize=None)
    add_lora(dense, LoRAConfig(rank=4))
    with pytest.raises(ConfigError, match="not held in"):
        train_through_merge(dense, original_weights(str(base)))
    dropping, _ = load_model(base, quantize="nf4")
    add_lora(dropping, LoRAConfig(rank=4, dropout=0.1))
    with pytest.raises(ConfigError, match="dropout"):
        train_through_merge(dropping, original_weights(str(base)))
    assert all(adapter.through is None for adapter in lora_modules(dropping).values())
    from graftlm.models import quantize_folder

    quantize_folder(base, tmp_path / "nf4")
    with pytest.raises(ConfigError, match="4 bits only"):
        original_weights(str(tmp_path / "nf4"))

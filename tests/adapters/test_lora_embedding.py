from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from graftlm.adapters.lora_embedding import LoRAEmbedding

IDS = torch.tensor([[0, 3, 3], [9, 1, 0]])


def table(scaled: bool, dtype: torch.dtype) -> nn.Embedding:
    if scaled:
        return Gemma3TextScaledWordEmbedding(10, 6, padding_idx=0, embed_scale=6**0.5).to(dtype)
    return nn.Embedding(10, 6, padding_idx=0).to(dtype)


def randomised(layer: LoRAEmbedding) -> LoRAEmbedding:
    nn.init.normal_(layer.lora_A)
    return layer


def in_peft(layer: LoRAEmbedding) -> nn.Module:
    config = LoraConfig(r=layer.rank, lora_alpha=layer.alpha, target_modules=["0"])
    model = inject_adapter_in_model(config, nn.Sequential(layer.base))
    model[0].lora_embedding_A["default"] = nn.Parameter(layer.lora_A.detach().clone())
    model[0].lora_embedding_B["default"] = nn.Parameter(layer.lora_B.detach().clone())
    return model


def test_a_fresh_adapter_changes_nothing_and_is_float32() -> None:
    layer = LoRAEmbedding(table(False, torch.bfloat16), 4, 8)
    assert torch.equal(layer(IDS), layer.base(IDS))
    assert not layer.lora_A.any()
    assert layer.lora_B.any()
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_gradients_equal_peft_to_the_bit(scaled: bool, dtype: torch.dtype) -> None:
    layer = randomised(LoRAEmbedding(table(scaled, dtype), 4, 8))
    theirs = in_peft(layer)
    ours_out, theirs_out = layer(IDS), theirs(IDS)
    assert torch.equal(ours_out, theirs_out)
    ours_out.float().square().sum().backward()
    theirs_out.float().square().sum().backward()
    assert torch.equal(layer.lora_A.grad, theirs[0].lora_embedding_A["default"].grad)
    assert torch.equal(layer.lora_B.grad, theirs[0].lora_embedding_B["default"].grad)


@pytest.mark.parametrize("scaled", [False, True])
def test_delta_folded_into_the_table_gives_the_same_output(scaled: bool) -> None:
    layer = randomised(LoRAEmbedding(table(scaled, torch.float32), 4, 8))
    expected = layer(IDS)
    with torch.no_grad():
        layer.base.weight += layer.delta()
    torch.testing.assert_close(layer.base(IDS), expected)


def test_disabled_is_the_base() -> None:
    layer = randomised(LoRAEmbedding(table(False, torch.float32), 4, 8))
    layer.enabled = False
    assert torch.equal(layer(IDS), layer.base(IDS))

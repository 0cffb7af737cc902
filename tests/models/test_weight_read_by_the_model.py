"""Models that read the weight of a linear layer themselves, with that layer held in 4 bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, JambaConfig, Mamba2Config, MambaConfig, RwkvConfig

from graftlm.errors import ModelError
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from graftlm.models.streaming import linear_layers, unquantized_names

SIZES = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2}
CONFIGS = {
    "mamba": MambaConfig(**SIZES, state_size=4),
    "mamba2": Mamba2Config(
        **SIZES, num_heads=4, head_dim=32, state_size=16, n_groups=1, chunk_size=8
    ),
    "jamba": JambaConfig(
        **SIZES,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
}
IDS = torch.arange(1, 17).view(1, 16)


def in_4_bits(model: Any) -> tuple[Any, Any]:
    """The model with its layers in NF4, and a dense one with the weights these stand for."""
    dense, kept = copy.deepcopy(model), unquantized_names(model)
    for name, layer in linear_layers(model).items():
        if name not in kept:
            frozen = FrozenLinear.of(layer, FrozenNF4)
            dense.get_submodule(name).weight.data = frozen.frozen.dequantize()
            model.set_submodule(name, frozen)
    return model, dense


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_and_gradients_are_those_of_the_dense_weights(family: str) -> None:
    torch.manual_seed(0)
    results = []
    for model in in_4_bits(AutoModelForCausalLM.from_config(CONFIGS[family]).eval()):
        model.requires_grad_(False)
        table: nn.Parameter = model.get_input_embeddings().weight.requires_grad_(True)
        out = model(IDS, use_cache=False, labels=IDS)
        out.loss.backward()
        results.append((out.logits.detach(), table.grad))
    (logits, gradient), (their_logits, their_gradient) = results
    torch.testing.assert_close(logits, their_logits, rtol=1e-4, atol=1e-5)
    assert (gradient - their_gradient).norm() <= 1e-4 * their_gradient.norm()


def test_a_model_that_writes_to_its_weights_is_refused_with_a_reason() -> None:
    config = RwkvConfig(**SIZES, attention_hidden_size=64, intermediate_size=128, context_length=64)
    model, _ = in_4_bits(AutoModelForCausalLM.from_config(config).eval())
    with pytest.raises(ModelError, match="would change a weight that is stored as nf4"):
        model(IDS, use_cache=False)

"""Steps whose course depends on values: experts, scans, shared keys. All are planned or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from graftlm.adapters import add_lora
from graftlm.config import LoRAConfig, RunConfig
from graftlm.errors import ModelError
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from graftlm.models.streaming import linear_layers, unquantized_names
from graftlm.planning import trace
from graftlm.planning.extrapolate import shallow_depths
from graftlm.planning.trace import BatchShape, trace_in_full, trace_step
from tests.oracles.tiny_architectures import tiny_config

COMMON = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3MoeConfig": {**EXPERTS, "head_dim": 16},
    "MixtralConfig": {"num_local_experts": 4},
    "GptOssConfig": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "DeepseekV3Config": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    },
    "Qwen3NextConfig": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "Gemma3nTextConfig": {
        "num_hidden_layers": 5,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 260,
        "hidden_size_per_layer_input": 16,
        "head_dim": 16,
        "laurel_rank": 8,
        "intermediate_size": [128] * 5,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0],
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
        "sliding_window": 16,
    },
    "MambaConfig": {"state_size": 8},
    "FalconMambaConfig": {"state_size": 8},
    "Mamba2Config": {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1},
}


def architecture(name: str, **changes: Any) -> Any:
    return getattr(transformers, name)(**COMMON | FAMILIES[name] | changes)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_full_fine_tuning_is_planned(name: str, device: str) -> None:
    made = trace_step(
        architecture(name), RunConfig(method="full"), BatchShape(2, 24), torch.float32, device
    )
    assert made.peak.nbytes > made.resident >= 4 * made.weight_bytes / 2 > 0
    assert made.peak.phase in ("forward", "loss", "backward", "optimizer")


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_are_planned_or_refused_in_a_sentence(name: str, method: str) -> None:
    config = RunConfig(method=method, lora=LoRAConfig(rank=1))
    arguments = architecture(name), config, BatchShape(2, 24), torch.bfloat16
    if runs(architecture(name), config):
        assert trace_step(*arguments).peak.components["adapters"] > 0
    else:
        with pytest.raises(ModelError):
            trace_step(*arguments)


def runs(config: Any, settings: RunConfig) -> bool:
    """Whether the model, made for real and adapted, can be called: some read a layer's weight."""
    model = transformers.AutoModelForCausalLM.from_config(config)
    if settings.method == "qlora":
        for name, layer in linear_layers(model).items():
            if name not in unquantized_names(model):
                model.set_submodule(name, FrozenLinear.of(layer, FrozenNF4))
    add_lora(model, settings.lora)
    try:
        model(torch.ones(1, 8, dtype=torch.int64), use_cache=False)
    except (AttributeError, ModelError):
        return False
    return True


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_experts_of_each_token_are_counted(device: str) -> None:
    """Each has three products, forward and twice backward, whichever way a device has for them."""
    one, two, four = (
        trace_step(
            architecture("Qwen3MoeConfig", num_experts_per_tok=n),
            RunConfig(method="full"),
            BatchShape(2, 32),
            torch.float32,
            device,
        )
        for n in (1, 2, 4)
    )
    tokens, layers = 2 * 32, 2
    more = 3 * 3 * 2 * tokens * layers * 64 * 32  # of one expert more for each token
    flops = [step.cost["matmul float32"] for step in (one, two, four)]
    assert flops[1] - flops[0] == more
    assert flops[2] - flops[1] == 2 * more
    assert one.peak.nbytes < two.peak.nbytes < four.peak.nbytes


def test_a_scan_over_the_row_is_continued_from_short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = architecture("MambaConfig")
    arguments = model, RunConfig(method="full"), BatchShape(2, 64), torch.float32
    whole = trace_in_full(*arguments)
    monkeypatch.setattr(trace, "MOST_CALLS", 100)
    monkeypatch.setattr(trace, "SHORT_LENGTHS", (16, 24))
    continued = trace_step(*arguments)
    assert continued.peak.nbytes == pytest.approx(whole.peak.nbytes, rel=0.02)
    assert continued.cost["calls"] == pytest.approx(whole.cost["calls"], rel=0.02)
    assert continued.resident == pytest.approx(whole.resident, rel=0.01)
    assert continued.trainable_parameters == whole.trainable_parameters


def test_blocks_of_tokens_are_continued_from_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gated delta rule pads each row to 64 tokens, so that 16 and 32 are alike."""
    arguments = (
        tiny_config("qwen3_next"),
        RunConfig(method="full"),
        BatchShape(1, 320),
        torch.float32,
    )
    whole = trace_in_full(*arguments)
    monkeypatch.setattr(trace, "MOST_CALLS", 100)
    monkeypatch.setattr(trace, "CALLS_OF_EXPERT", 0)
    continued = trace_step(*arguments)
    assert continued.peak.nbytes == pytest.approx(whole.peak.nbytes, rel=0.1)
    assert continued.cost["calls"] == pytest.approx(whole.cost["calls"], rel=0.1)


def test_dense_layers_before_experts_are_kept() -> None:
    deep = architecture("DeepseekV3Config", num_hidden_layers=10, first_k_dense_replace=1)
    assert shallow_depths(deep, RunConfig()) == (2, 3)
    arguments = deep, RunConfig(method="full"), BatchShape(1, 32), torch.float32
    continued, whole = trace_step(*arguments), trace_in_full(*arguments)
    assert continued.weight_bytes == whole.weight_bytes
    assert continued.peak.nbytes == pytest.approx(whole.peak.nbytes, rel=0.01)
    later = architecture("DeepseekV3Config", num_hidden_layers=18, first_k_dense_replace=3)
    assert shallow_depths(later, RunConfig()) == (4, 5)

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, PretrainedConfig, PreTrainedModel

from graftlm.config import LoRAConfig, RunConfig, TrainConfig
from graftlm.errors import ModelError
from graftlm.models.assemble import empty_model
from graftlm.planning import extrapolate
from graftlm.planning.extrapolate import shallow_depths, with_depth
from graftlm.planning.trace import BatchShape, trace_in_full, trace_step

DEEP = LlamaConfig(
    vocab_size=2000,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=15,
    num_attention_heads=4,
    num_key_value_heads=2,
)
GEMMA = Gemma3TextConfig(
    vocab_size=2000,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=38,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
    sliding_window=16,
)


def depths(architecture: PretrainedConfig, lora: LoRAConfig) -> tuple[int, int] | None:
    return shallow_depths(architecture, RunConfig(lora=lora))


@pytest.mark.parametrize(
    ("method", "checkpointing", "passes", "device"),
    [
        ("full", False, 1, "cpu"),
        ("full", True, 2, "cuda"),
        ("lora", False, 2, "cpu"),
        ("qlora", True, 1, "cuda"),
    ],
)
def test_a_deep_model_continued_equals_the_deep_model_traced(
    method: str, checkpointing: bool, passes: int, device: str
) -> None:
    settings = TrainConfig(gradient_checkpointing=checkpointing)
    config = RunConfig(method=method, train=settings)
    arguments = (DEEP, config, BatchShape(2, 48, passes=passes), torch.bfloat16, device)
    assert depths(DEEP, config.lora) == (2, 3)
    continued, traced = trace_step(*arguments), trace_in_full(*arguments)
    assert continued.peak.components == traced.peak.components
    assert continued.peak.phase == traced.peak.phase
    assert continued.resident == traced.resident
    assert continued.trainable_parameters == traced.trainable_parameters
    assert continued.weight_bytes == traced.weight_bytes
    kinds = {kind for kind in traced.cost if kind != "bytes"}
    assert {kind: continued.cost[kind] for kind in kinds} == {k: traced.cost[k] for k in kinds}


def test_a_pattern_of_layers_is_kept_whole() -> None:
    first, second = depths(GEMMA, LoRAConfig())
    assert (first - second) % 6 == 0
    assert (first - GEMMA.num_hidden_layers) % 6 == 0
    assert with_depth(GEMMA, first).layer_types == GEMMA.layer_types[:first]
    assert GEMMA.num_hidden_layers == 38


@pytest.mark.parametrize(
    "lora",
    [
        LoRAConfig(targets=r".*layers\.\d+\.mlp.*"),
        LoRAConfig(targets=("layers.3.mlp.up_proj",)),
        LoRAConfig(rank_pattern={"layers.0.mlp.up_proj": 4}),
    ],
)
def test_settings_that_name_layers_are_traced_in_full(lora: LoRAConfig) -> None:
    assert depths(DEEP, lora) is None
    assert depths(with_depth(DEEP, 8), LoRAConfig()) is None


def test_a_model_that_cannot_be_built_with_fewer_layers_is_traced_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(architecture: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
        if architecture.num_hidden_layers < DEEP.num_hidden_layers:
            raise ModelError("it counts its layers from the end")
        return empty_model(architecture, trust_remote_code)

    monkeypatch.setattr(extrapolate, "empty_model", build)
    assert depths(DEEP, LoRAConfig()) is None

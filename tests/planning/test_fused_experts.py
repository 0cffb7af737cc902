"""A plan counts experts as a run holds them, and says what adapters on them would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm.adapters import add_lora, count_parameters, lora_modules
from graftlm.adapters.lora_experts import LoRAExperts
from graftlm.config import RunConfig, validate
from graftlm.frozen.modules import stored_weights
from graftlm.models import load_model
from graftlm.planning import make_plan, trace
from graftlm.planning.fused_experts import fused_experts
from graftlm.planning.source import Source
from graftlm.planning.trace import BatchShape, trace_step
from graftlm.planning.tracker import TooManyCallsError
from tests.oracles.mixtures import LEAVES, OWN_CODE, tiny_mixture

BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def settings(parameters: list[str], **lora: Any) -> RunConfig:
    return validate(
        RunConfig,
        {
            "method": "qlora",
            "model": {"name": "mixture"},
            "lora": {"rank": 4, "target_parameters": parameters} | lora,
        },
    )


@pytest.mark.parametrize("adapted", [False, True], ids=["frozen", "adapted"])
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", *OWN_CODE])
def test_weights_and_adapters_are_those_of_the_loaded_model(
    kind: str, adapted: bool, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    parameters = list(LEAVES.get(kind, BOTH)) if adapted else []
    plain = tiny_mixture(kind)
    plain.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    # Its weight is read without a call; training finds that out, a plan does not.
    config = settings(parameters, exclude=["classifier"] if kind == "longcat_flash" else [])
    planned = trace_step(plain.config, config, BatchShape(2, 24), torch.float32)
    model, _ = load_model(tmp_path, quantize="nf4")
    stored = sum(weight.nbytes for weight in stored_weights(model))
    held = {id(p): p.nbytes for p in model.parameters()}
    buffers = sum(b.nbytes for n, b in model.named_buffers() if "inv_freq" in n)
    assert planned.weight_bytes == pytest.approx(stored + sum(held.values()) + buffers, rel=0.01)
    add_lora(model, config.lora)
    assert planned.trainable_parameters == count_parameters(model).trainable
    said = fused_experts(plain.config, config)
    assert said is not None
    adapters = [m for m in lora_modules(model).values() if isinstance(m, LoRAExperts)]
    assert said.adapted == sum(p.numel() for m in adapters for p in m.adapter_parameters().values())
    assert bool(said.adapted) == adapted
    assert not said.router


def test_the_plan_says_how_to_adapt_the_experts() -> None:
    architecture = tiny_mixture("qwen3_moe").config
    frozen = make_plan(settings([]), architecture=architecture, methods=["qlora"], device="cpu")
    assert frozen.experts is not None
    assert frozen.experts.matrices == 2 * 2 * 4
    assert frozen.experts.weights == 2 * 4 * (96 * 64 + 64 * 48)
    assert frozen.experts.adapted == 0
    assert "lora.target_parameters=[experts.gate_up_proj, experts.down_proj]" in str(frozen.experts)
    assert f"{frozen.experts.if_adapted:,} parameters" in str(frozen.experts)
    assert "router is frozen" in str(frozen.experts)
    half = settings(BOTH[:1], rank_pattern={"experts.gate_up_proj": 2})
    adapted = make_plan(half, architecture=architecture, methods=["qlora"], device="cpu")
    assert adapted.experts is not None
    assert adapted.experts.adapted == 2 * 4 * 2 * (96 + 64)
    more = [plan.recommendation.option.trainable_parameters for plan in (frozen, adapted)]
    assert more[1] - more[0] == adapted.experts.adapted
    assert adapted.to_json()["experts"]["adapted"] == adapted.experts.adapted


def test_loading_is_planned_with_the_fused_tensors() -> None:
    """transformers reads all parts of a parameter, stacks them and joins them."""
    architecture = tiny_mixture("qwen3_moe").config
    architecture.dtype = torch.float32
    source = Source(architecture)
    assert source.loading_bytes(settings([])) == 2 * 4 * (4 * 96 * 64)
    dense = settings([]).model_copy(update={"method": "lora"})
    assert source.loading_bytes(dense) < 2 * 4 * (4 * 96 * 64)


def test_a_model_without_experts_has_no_word_on_them(tiny_llama: Path) -> None:
    from graftlm.models.load import load_config

    architecture = load_config(tiny_llama)
    assert fused_experts(architecture, settings([])) is None


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_model_of_many_experts_is_not_taken_for_one_that_reads_token_by_token(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings([]).model_copy(update={"method": method})
    arguments = tiny_mixture("qwen3_moe").config, config, BatchShape(2, 24), torch.float32
    monkeypatch.setattr(trace, "MOST_CALLS", 0)
    assert trace.trace_in_full(*arguments, bounded=True).cost["calls"] > 0
    monkeypatch.setattr(trace, "CALLS_OF_EXPERT", 1)
    with pytest.raises(TooManyCallsError):
        trace.trace_in_full(*arguments, bounded=True)

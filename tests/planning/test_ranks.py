"""The memory of one of several processes: what is shared, what is whole, and which is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftlm.config import RunConfig, validate
from graftlm.errors import ConfigError
from graftlm.planning import Option, Plan, choose, make_plan
from graftlm.planning.cost import Cost
from graftlm.planning.extrapolate import Trace
from graftlm.planning.ranks import peak_of_rank
from graftlm.planning.timeline import Peak

MB = 1 << 20


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path_factory.getbasetemp() / "plan-cache"))


def test_a_rank_holds_its_share_and_what_is_gathered() -> None:
    whole = {"weights": 80 * MB, "quantization_state": 10 * MB, "adapters": MB, "gradients": 0}
    trace = Trace({"loss": Peak(whole, "loss", "")}, 0, Cost(), MB, 90 * MB)
    replica = peak_of_rank(trace, 4)
    assert replica.components["weights"] == 80 * MB
    assert replica.components["gradients"] == 4 * MB  # the reducer's buckets are always there
    shared = peak_of_rank(trace, 4, [10 * MB, 10 * MB, 30 * MB])
    assert shared.components["weights"] == 20 * MB
    assert shared.components["temporary"] == 30 * MB + 2 * 10 * MB
    assert shared.components["adapters"] == MB
    on_a_card = peak_of_rank(trace, 4, [10 * MB, 10 * MB, 30 * MB], keeps_buffer=True)
    assert on_a_card.components["temporary"] == 30 * MB + 2 * 10 * MB + 30 * MB


def _settings(model: Path, **settings: object) -> RunConfig:
    tree = {"model": {"name": str(model)}, "device": "cpu", "data": {"max_length": 64}, **settings}
    return validate(RunConfig, tree)


def _planned(model: Path, memory: str | int, processes: int, **settings: object) -> Plan:
    config = _settings(model, **settings)
    return make_plan(config, memory=memory, methods=["lora"], processes=processes)


@pytest.fixture
def large_layers(tmp_path: Path) -> Path:
    """The config of a model whose layers are most of it; nothing of it is loaded."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8}
    config = LlamaConfig(**sizes, num_hidden_layers=24, vocab_size=300, dtype="bfloat16")
    config.save_pretrained(tmp_path / "large")
    return tmp_path / "large"


def _of(plan: Plan, engine: str) -> Option:
    return next(o for o in plan.options if o.distributed == engine and not o.gradient_checkpointing)


def test_auto_takes_replicas_where_they_fit_and_shares_where_not(large_layers: Path) -> None:
    plan = _planned(large_layers, "20GB", 4)
    replica, shared = _of(plan, "ddp"), _of(plan, "fsdp")
    assert plan.recommendation.option.distributed == "ddp"
    assert "--processes 4" in plan.command
    assert shared.predicted_peak_bytes < replica.predicted_peak_bytes
    assert shared.components["weights"] == -(-replica.components["weights"] // 4)
    between = (shared.predicted_peak_bytes + replica.predicted_peak_bytes) // 2
    tight = _planned(large_layers, int(between / 0.92), 4)
    chosen = tight.recommendation
    assert chosen.option.distributed == "fsdp"
    assert "by DDP" in chosen.why
    assert "by FSDP2" in chosen.why
    assert "distributed=fsdp" in tight.command
    lora = _settings(large_layers, method="lora")
    made, why = choose(lora, limit=int(between / 0.92), processes=4)
    assert (made.distributed, why) == ("fsdp", chosen.why)


def test_a_named_engine_is_kept_and_rows_are_divided(large_layers: Path) -> None:
    named = _planned(large_layers, "20GB", 2, distributed="fsdp")
    assert {option.distributed for option in named.options} == {"fsdp"}
    assert named.recommendation.option.distributed == "fsdp"
    alone = _planned(large_layers, "20GB", 1)
    assert {option.distributed for option in alone.options} == {"none"}


def test_what_rules_out_shares_leaves_replicas(large_layers: Path) -> None:
    train = {"samples": 2, "eval_steps": 5}
    data = {"max_length": 64, "eval_fraction": 0.1}
    plan = _planned(large_layers, "20GB", 2, train=train, data=data)
    assert {option.distributed for option in plan.options} == {"ddp"}


def test_a_trial_of_several_processes_is_refused(large_layers: Path) -> None:
    with pytest.raises(ConfigError, match="a trial run is one process"):
        make_plan(_settings(large_layers), verify="recommended", processes=2)

"""`lora.rank: auto` moves rank to where it is used, within the budget, and only if that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import graftlm
from graftlm.adapters.peft_config import read_config
from graftlm.cli._settings import overrides
from graftlm.cli.plan import _rank_probe
from graftlm.config import RunConfig, parse_override, recorded_config
from graftlm.errors import ConfigError
from graftlm.planning.trace import BatchShape, trace_step
from graftlm.training.rank_probe import allocate
from graftlm.training.train import run
from tests.oracles.model_families import tiny_model


def request(model: Path, rows: Path, out: Path, **lora: Any) -> RunConfig:
    return RunConfig(
        out=str(out),
        method="lora",
        device="cpu",
        model=graftlm.ModelConfig(name=str(model), embeddings="keep"),
        data=graftlm.DataConfig(train=str(rows), max_length=64, eval_fraction=0.2),
        lora=graftlm.LoRAConfig(**lora),
        train=graftlm.TrainConfig(steps=8, batch_size=4, learning_rate=2e-2),
    )


def trained_parameters(run: Path) -> int:
    return int(json.loads((run / "summary.json").read_text())["trainable_parameters"])


def test_the_largest_gains_for_each_parameter_are_taken_within_the_budget() -> None:
    values = {
        "wide": torch.tensor([4.0, 3.0, 0.1]),
        "thin": torch.tensor([4.0, 2.0, 1.9]),
        "idle": torch.tensor([0.2, 0.1, 0.1]),
    }
    costs = {"wide": 100, "thin": 10, "idle": 10}
    assert allocate(values, costs, 120) == {"wide": 1, "thin": 1, "idle": 1}
    assert allocate(values, costs, 140) == {"wide": 1, "thin": 3, "idle": 1}
    assert allocate(values, costs, 240) == {"wide": 2, "thin": 3, "idle": 1}


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}, {"init": "pissa"}], ids=str)
def test_the_run_is_the_one_with_those_ranks_from_the_start(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, lora: dict[str, Any], capfd: Any
) -> None:
    settings = {"rank": 4, "alpha": 8, "probe_ranks": True} | lora
    probed = request(tiny_llama, rows_file, tmp_path / "a", **settings)
    run(probed, progress=False)
    said = capfd.readouterr().err
    assert "ranks: 8 steps each, judged on" in said
    recorded = recorded_config(tmp_path / "a" / "config.yaml")
    assert not recorded.lora.probe_ranks
    again = probed.model_copy(update={"out": str(tmp_path / "b"), "lora": recorded.lora})
    run(again, progress=False)
    one, other = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in "ab"
    )
    assert one == other
    uniform = probed.model_copy(
        update={
            "out": str(tmp_path / "c"),
            "lora": probed.lora.model_copy(update={"probe_ranks": False}),
        }
    )
    run(uniform, progress=False)
    assert trained_parameters(tmp_path / "a") <= trained_parameters(tmp_path / "c")
    config = read_config(tmp_path / "a" / "adapter")
    took = "took them" in said
    assert bool(config.rank_pattern) is took
    resumed = run(probed, resume=True, progress=False)
    assert resumed.finished


def test_auto_is_a_word_of_the_rank(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    config = request(tiny_llama, rows_file, tmp_path / "run", rank="auto")
    assert config.lora.probe_ranks
    assert config.lora.rank == 16
    assert parse_override("lora.rank=auto") == (["lora", "rank"], "auto")
    assert overrides({"rank": "auto"}, []) == [(["lora", "rank"], "auto")]
    assert overrides({"rank": "8"}, []) == [(["lora", "rank"], 8)]
    assert _rank_probe(config) == {"steps": 24, "passes": 3, "rows": 48, "widest": 32}


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": "auto", "init": "eva"}, "eva, which moves ranks itself"),
        ({"rank": "auto", "rank_pattern": {"q_proj": 3}}, "which say them"),
        ({"rank": "auto", "target_parameters": ("gate.weight",)}, "experts keep one rank"),
        ({"rank": "auto", "targets": ("embed_tokens",)}, "between linear layers, and"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, lora: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(request(tiny_llama, rows_file, tmp_path / "run", **lora), progress=False)


def test_a_plan_has_room_for_the_widest_run() -> None:
    model = tiny_model("llama")
    narrow = RunConfig(method="lora", lora=graftlm.LoRAConfig(rank=4))
    probing = RunConfig(method="lora", lora=graftlm.LoRAConfig(rank=4, probe_ranks=True))
    traces = [
        trace_step(model.config, config, BatchShape(1, 16), torch.float32)
        for config in (narrow, probing)
    ]
    assert traces[1].peak.components["adapters"] == 2 * traces[0].peak.components["adapters"]

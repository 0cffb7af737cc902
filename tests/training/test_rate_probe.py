"""`train.learning_rate: auto` takes a rate that trains best, and leaves no trace on the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import graftlm
from graftlm.config import recorded_config
from graftlm.errors import ConfigError, TrainingError
from graftlm.training.rate_probe import chosen, grid


def request(model: Path, rows: Path, out: Path, rate: Any, **more: Any) -> graftlm.RunConfig:
    return graftlm.RunConfig(
        out=str(out),
        method=more.pop("method", "lora"),
        device="cpu",
        model=graftlm.ModelConfig(name=str(model), embeddings="keep"),
        data=graftlm.DataConfig(train=str(rows), max_length=64, eval_fraction=0.2),
        lora=graftlm.LoRAConfig(rank=4, alpha=8, dropout=0.1),
        train=graftlm.TrainConfig(steps=8, batch_size=4, learning_rate=rate, **more),
    )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_run_is_the_one_with_that_rate_from_the_start(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, method: str, capfd: Any
) -> None:
    probed = graftlm.run(
        request(tiny_llama, rows_file, tmp_path / "a", "auto", method=method), progress=False
    )
    said = capfd.readouterr().err
    assert "learning rate: 8 steps each, judged on" in said
    rate = recorded_config(tmp_path / "a" / "config.yaml").train.learning_rate
    assert isinstance(rate, float)
    assert f"took {rate:.2g}" in said
    again = graftlm.run(
        request(tiny_llama, rows_file, tmp_path / "b", rate, method=method), progress=False
    )
    place = "model/model" if method == "full" else "adapter/adapter_model"
    one, other = ((tmp_path / run / f"{place}.safetensors").read_bytes() for run in "ab")
    assert one == other
    assert probed.eval_loss_after == again.eval_loss_after
    middle = {"lora": 2e-4, "full": 2e-5}[method]
    untouched = graftlm.run(
        request(tiny_llama, rows_file, tmp_path / "c", middle, method=method), progress=False
    )
    # A random model learns best at rates far above the default, which suits pretrained ones.
    assert rate > middle
    assert probed.eval_loss_after < untouched.eval_loss_after
    resumed = graftlm.run(
        request(tiny_llama, rows_file, tmp_path / "a", "auto", method=method),
        resume=True,
        progress=False,
    )
    assert resumed.finished
    assert recorded_config(tmp_path / "a" / "config.yaml").train.learning_rate == rate


def test_the_smallest_of_equally_good_rates_is_taken() -> None:
    assert grid(2e-4) == [6.3e-5, 2e-4, 6.3e-4, 2e-3, 6.3e-3]
    assert chosen({1e-4: 2.0, 1e-3: 1.501, 1e-2: 1.5, 1e-1: math.inf}) == 1e-3
    with pytest.raises(TrainingError, match=r"no learning rate of 0\.1"):
        chosen({1e-1: math.inf})


def test_rows_to_judge_on_are_those_that_the_steps_do_not_read(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    config = request(tiny_llama, rows_file, tmp_path / "run", "auto")
    few = config.model_copy(update={"data": graftlm.DataConfig(train=str(rows_file))})
    result = graftlm.run(few, progress=False)  # 8 steps of 4 rows leave 8 of the 40
    assert result.finished
    all_read = graftlm.TrainConfig(steps=10, batch_size=4, learning_rate="auto")
    whole = few.model_copy(update={"train": all_read, "out": str(tmp_path / "whole")})
    with pytest.raises(ConfigError, match="there are none: give --eval-data"):
        graftlm.run(whole, progress=False)

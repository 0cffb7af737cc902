"""A run that is too short to learn from is warned of before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graftlm.config import ResolvedConfig, RunConfig, validate
from graftlm.training import run
from graftlm.training.too_few import reach, too_few_updates


def settings(method: str, **train: Any) -> ResolvedConfig:
    tree = {
        "method": method,
        "model": {"name": "m", "dtype": "float32", "embeddings": "keep"},
        "data": {"train": "rows.jsonl", "chat_template": "plain"},
        "train": {"micro_batch_tokens": 0, "gradient_checkpointing": False} | train,
    }
    return validate(ResolvedConfig, tree)


@pytest.mark.parametrize(
    ("method", "steps", "rate", "warned"),
    [
        ("lora", 13, 2e-4, True),
        ("qlora", 13, 2e-4, True),
        ("qlora", 13, 2e-3, False),
        ("lora", 60, 2e-4, False),
        ("full", 13, 2e-5, True),
        ("full", 60, 2e-5, False),
    ],
)
def test_a_run_that_moves_its_weights_too_little_is_warned_of(
    method: str, steps: int, rate: float, warned: bool
) -> None:
    said = too_few_updates(settings(method, steps=steps, learning_rate=rate))
    assert bool(said) == warned
    if warned:
        assert f"{steps} updates at a peak learning rate of {rate:g} are too few" in said


def test_the_steps_it_names_are_enough() -> None:
    said = too_few_updates(settings("lora", steps=13, learning_rate=2e-4))
    more = int(said.split("Take about ")[1].split(" ")[0])
    assert not too_few_updates(settings("lora", steps=more, learning_rate=2e-4))


def test_reach_is_the_sum_of_the_learning_rates() -> None:
    flat = settings("lora", steps=10, learning_rate=0.5, schedule="constant", warmup_ratio=0.0)
    assert reach(flat) == pytest.approx(5.0)


def test_training_says_it(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate, warned in ((2e-4, True), (0.1, False)):
        tree = {
            "method": "lora",
            "out": str(tmp_path / f"{rate}"),
            "model": {"name": str(tiny_llama)},
            "data": {"train": str(rows_file), "max_length": 64},
            "lora": {"rank": 2, "targets": ["q_proj"]},
            "train": {"steps": 1, "batch_size": 2, "learning_rate": rate},
        }
        run(validate(RunConfig, tree), progress=False)
        assert ("are too few for the model to learn" in capsys.readouterr().err) == warned

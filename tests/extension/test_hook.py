"""A hook from outside: it ends a run, adds to its record, and is called at every fixed point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import graftlm
from graftlm.extend import Example, Hook
from graftlm.training.hooks.metrics_file import read_metrics
from tests.extension.stop_below import StopBelow

ROWS = [Example([1, 2, 3, 4 + i, 9 + i, 11], [False, False] + [True] * 4) for i in range(8)]


def fit(folder: Path, out: Path, hooks: list[Hook], **train: Any) -> Any:
    model, tokenizer = graftlm.load_model(str(folder))
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4, alpha=8))
    settings = {"steps": 30, "batch_size": 4, "learning_rate": 2e-2} | train
    resume = (out / "config.yaml").exists()
    return graftlm.train(
        model, tokenizer, ROWS, graftlm.TrainConfig(**settings), out=out, eval_data=ROWS,
        progress=False, hooks=hooks, resume=resume,
    )  # fmt: skip


def test_a_hook_stops_the_run_with_its_result(tiny_llama: Path, tmp_path: Path) -> None:
    result = fit(tiny_llama, tmp_path / "run", [StopBelow(5.2)])
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert result.finished
    assert 1 < result.steps == len(rows) < 30
    assert rows[-1]["loss"] < 5.2 <= rows[-2]["loss"]
    assert [row["above"] for row in rows] == [row["loss"] - 5.2 for row in rows]
    assert Path(result.adapter).is_dir()


class Recorder(Hook):
    """The name of each call, in order."""

    def __init__(self, fail_at: str = "", pause_after: int = 0) -> None:
        self.calls: list[str] = []
        self.fail_at, self.pause_after = fail_at, pause_after

    def __getattribute__(self, name: str) -> Any:
        if name in vars(Hook) and not name.startswith("_"):

            def call(active: Any, *details: Any) -> None:
                self.calls.append(name)
                if name == self.fail_at:
                    raise KeyError(name)
                if name == "step_ends" and active.state.step == self.pause_after:
                    active.pause()

            return call
        return super().__getattribute__(name)


STEP = ["step_begins", "step_ends"]
SAVE = ["checkpoint_begins", "checkpoint_written"]


def test_hooks_are_called_at_fixed_points(tiny_llama: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    fit(tiny_llama, tmp_path / "run", [recorder], steps=4, save_steps=2, learning_rate=1e-9)
    assert recorder.calls == [
        "run_begins", "evaluation_ends", *STEP, *STEP, *SAVE, *STEP, *STEP, *SAVE,
        *SAVE, "evaluation_ends", "run_ends", "closed",
    ]  # fmt: skip


def test_a_paused_run_goes_on(tiny_llama: Path, tmp_path: Path) -> None:
    recorder = Recorder(pause_after=2)
    paused = fit(tiny_llama, tmp_path / "run", [recorder], steps=4)
    assert (paused.finished, paused.steps, paused.adapter) == (False, 2, None)
    assert recorder.calls == [
        "run_begins",
        "evaluation_ends",
        *STEP,
        *STEP,
        *SAVE,
        "run_ends",
        "closed",
    ]
    resumed = fit(tiny_llama, tmp_path / "run", [], steps=4)
    assert (resumed.finished, resumed.steps) == (True, 4)


@pytest.mark.parametrize("point", ["run_begins", "step_ends", "checkpoint_written", "run_ends"])
def test_a_hook_that_fails_ends_the_run_and_all_are_told_and_closed(
    point: str, tiny_llama: Path, tmp_path: Path
) -> None:
    hooks = [Recorder(), Recorder(fail_at=point), Recorder()]
    with pytest.raises(KeyError, match=point):
        fit(tiny_llama, tmp_path / "run", list(hooks), steps=1)
    for hook in hooks:
        assert hook.calls[-2:] == ["failed", "closed"]

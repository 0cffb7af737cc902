"""Trackers by one setting; the packages are large, so recorders stand for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, TrainConfig, validate
from graftlm.errors import ResourceError
from graftlm.training import run
from graftlm.training.hooks.hook import Hook
from graftlm.training.hooks.metrics_file import read_metrics

CALLS = ("init", "log", "finish", "set_experiment", "start_run", "log_params", "log_metrics")


class Recorder:
    """A package that writes down how it is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.id = "the-id"
        self.info = SimpleNamespace(run_id="the-id")

    def __getattr__(self, name: str) -> Any:
        if name not in (*CALLS, "end_run"):
            raise AttributeError(name)

        def call(*values: Any, **named: Any) -> Recorder:
            self.calls.append((name, named | ({"given": values[0]} if values else {})))
            return self

        return call

    def named(self, *names: str) -> list[dict[str, Any]]:
        return [given for name, given in self.calls if name in names]


def request(model: Path, rows: Path, out: Path, **train: Any) -> RunConfig:
    return RunConfig(
        method="qlora",
        out=str(out),
        model=ModelConfig(name=str(model)),
        data=DataConfig(train=str(rows)),
        lora=LoRAConfig(rank=2),
        train=TrainConfig(**({"steps": 3, "batch_size": 2, "save_steps": 1} | train)),
    )


@pytest.mark.parametrize("package", ["wandb", "mlflow", "trackio"])
def test_a_tracker_gets_what_the_metrics_file_gets(
    package: str, tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, package, recorder)
    out = tmp_path / "run"
    run(request(tiny_llama, rows_file, out, tracking=package), progress=False)
    logged = recorder.named("log", "log_metrics")
    rows = read_metrics(out / "metrics.jsonl")
    assert [given["step"] for given in logged] == [1, 2, 3]
    assert [given["given"]["loss"] for given in logged] == [row["loss"] for row in rows]
    [settings] = recorder.named("init", "log_params")
    assert settings.get("config", settings.get("given"))["lora.rank"] in (2, "2")
    ends = recorder.named("finish", "end_run")
    assert ends == [{"wandb": {"exit_code": 0}, "mlflow": {"status": "FINISHED"}}.get(package, {})]
    # A resumed run goes on under its id.
    known = json.loads((out / "tracking.json").read_text())[package]
    longer = request(tiny_llama, rows_file, out, tracking=package, steps=4)
    run(longer, resume=True, progress=False)
    again = recorder.named("init", "start_run")[-1]
    assert known in again.values()
    assert recorder.named("log", "log_metrics")[-1]["step"] == 4


def test_a_run_that_fails_is_told_as_failed(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    class Fails(Hook):
        def step_begins(self, active: Any) -> None:
            raise ZeroDivisionError

    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", recorder)
    with pytest.raises(ZeroDivisionError):
        run(
            request(tiny_llama, rows_file, tmp_path / "run", tracking="mlflow"),
            progress=False,
            hooks=[Fails()],
        )
    assert recorder.named("end_run") == [{"status": "FAILED"}]


@pytest.mark.parametrize("package", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_named_before_anything_is_written(
    package: str, tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResourceError, match=rf"graftlm\[{package}\]"):
        run(request(tiny_llama, rows_file, tmp_path / "run", tracking=package))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("old", "new"), [(True, "tensorboard"), (False, "none")])
def test_settings_of_earlier_run_folders_are_read(old: bool, new: str) -> None:
    settings = validate(RunConfig, {"train": {"tensorboard": old, "steps": 3}})
    assert (settings.train.tracking, settings.train.steps) == (new, 3)

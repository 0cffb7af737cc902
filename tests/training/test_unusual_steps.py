"""Steps and evaluations without a usable number, and objectives that remember."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import graftlm
from graftlm.errors import ArtifactError, TrainingError
from graftlm.extend import Example, Hook, register_objective
from graftlm.training import objective
from graftlm.training.active_run import ActiveRun
from graftlm.training.next_token import NextToken


def train(folder: Path, data: Any, out: Path, *, hooks: Any = (), **settings: Any) -> Any:
    model, tokenizer = graftlm.load_model(str(folder))
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=2, targets=["q_proj"]))
    resume, held = settings.pop("resume", False), settings.pop("eval_data", None)
    config = graftlm.TrainConfig(**({"steps": 2, "batch_size": 2} | settings))
    return graftlm.train(
        model, tokenizer, data, config,
        out=out, eval_data=held, resume=resume, hooks=hooks, progress=False,
    )  # fmt: skip


def test_an_evaluation_that_is_not_a_number_is_reported_and_never_the_best(
    tiny_llama: Path,
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    losses = iter([5.0, float("nan"), 2.0, 3.0, 2.0])  # before, three steps, after
    monkeypatch.setattr(ActiveRun, "evaluate", lambda _: next(losses))
    result = train(
        tiny_llama, rows_file, tmp_path / "run", eval_data=rows_file, steps=3, eval_steps=1
    )
    assert result.kept_step == 2
    assert "step 1: the held-out loss is nan" in capfd.readouterr().err


def test_a_step_with_nothing_to_learn_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [Example([1, 2, 3, 4], [False] * 4), Example([1, 2, 3], [False, True, True])]
    with pytest.raises(
        TrainingError, match=r"nothing to learn: .*'next_token' counts 0 in their 4"
    ):
        train(tiny_llama, rows, tmp_path / "run", batch_size=1)


def test_one_objective_serves_the_whole_run_with_the_resolved_settings(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective._objectives, "_classes", {**objective._objectives._classes})
    number = itertools.count()
    calls: set[tuple[str, int]] = set()

    @register_objective
    class Numbered(NextToken):
        name = "numbered"

        def __init__(self, settings: Any) -> None:
            super().__init__(settings)
            self.number = next(number)
            assert settings.learning_rate is not None
            assert settings.micro_batch_tokens is not None

        def examples_in(self, rows: Sequence[Any]) -> Sequence[Example]:
            calls.add(("examples_in", self.number))
            return rows

        def measure(self, model: Any, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
            calls.add(("measure", self.number))
            return {}

        def loss(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
            calls.add(("loss", self.number))
            return super().loss(model, batch)

    train(tiny_llama, rows_file, tmp_path / "run", objective="numbered")
    assert calls == {("examples_in", 0), ("measure", 0), ("loss", 0)}


class FailAt(Hook):
    """Raises before a step, and notes the calls at the end of a run."""

    def __init__(self, step: int | None) -> None:
        self.step = step
        self.calls: list[str] = []

    def step_begins(self, active: Any) -> None:
        if active.state.step == self.step:
            raise RuntimeError("the hook fails")

    def failed(self, active: Any, error: BaseException) -> None:
        self.calls.append("failed")

    def closed(self, active: Any) -> None:
        self.calls.append("closed")


def test_a_run_that_starts_anew_drops_older_measurements(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="the hook fails"):
        train(tiny_llama, rows_file, out, hooks=[FailAt(0)])
    save_file({"train/margin": torch.zeros(40)}, out / "measured.safetensors")
    assert train(tiny_llama, rows_file, out).finished
    assert not (out / "measured.safetensors").exists()


def test_hooks_are_closed_when_a_checkpoint_cannot_be_restored(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    train(tiny_llama, rows_file, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-2" / "rng.safetensors").write_bytes(b"cut")
    hook = FailAt(None)
    with pytest.raises(ArtifactError, match="cannot be read"):
        train(tiny_llama, rows_file, tmp_path / "run", resume=True, hooks=[hook])
    assert hook.calls == ["failed", "closed"]


def test_an_extension_that_fails_makes_the_missing_steps_when_resumed(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    """The run first ended early, by its patience, which then starts to count anew."""
    out = tmp_path / "run"
    options: dict[str, Any] = {
        "eval_data": rows_file, "eval_steps": 1, "early_stopping_patience": 2,
        "schedule": "constant", "warmup_ratio": 0.0, "learning_rate": 20.0,
    }  # fmt: skip
    first = train(tiny_llama, rows_file, out, steps=9, **options)
    assert first.finished
    assert first.steps < 9
    begun = first.steps
    with pytest.raises(RuntimeError, match="the hook fails"):
        train(
            tiny_llama, rows_file, out, steps=12, resume=True, hooks=[FailAt(begun + 1)], **options
        )
    assert train(tiny_llama, rows_file, out, steps=12, resume=True, **options).steps >= begun + 2

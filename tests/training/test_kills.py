"""A run that is killed at any file-system event loses nothing and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from graftlm.config import RunConfig, validate
from graftlm.errors import ResourceError
from graftlm.files import atomic_folder, recover, remove_folder
from graftlm.training import checkpoint, run
from graftlm.training.checkpoint import TrainState
from graftlm.training.hooks.metrics_file import read_metrics

EVENTS = ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink")


class Killed(BaseException):
    """Not an error: nothing that handles errors may handle it."""


def patch_event(
    patch: pytest.MonkeyPatch, name: str, changed: Callable[[Callable[..., Any]], Any]
) -> None:
    """Change a function of `os`, also where pathlib of Python 3.10 holds it from its import on."""
    new = changed(getattr(os, name))
    patch.setattr(os, name, new)
    accessor = getattr(pathlib, "_normal_accessor", None)
    if hasattr(accessor, name):
        patch.setattr(accessor, name, new)


@contextlib.contextmanager
def killed_at(event: int) -> Iterator[Callable[[], int]]:
    """Die before this file-system event, and do nothing more, as a killed process does nothing."""
    seen = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen > event:
                raise Killed
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in EVENTS:
            patch_event(patch, name, dying)
        yield lambda: seen


def events_of(action: Callable[[], Any]) -> int:
    with killed_at(10**9) as seen:
        action()
        return seen()


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(folder: Path, step: int) -> None:
    model, optimizer = trained()
    with torch.no_grad():
        model.weight.fill_(step)
    rng = {"cpu": torch.get_rng_state()}
    checkpoint.save(folder / f"step-{step}", model, optimizer, TrainState(step), rng, "base")


def restored(folder: Path) -> int:
    """The step of the last checkpoint, all of whose files can be read."""
    path = checkpoint.latest(folder)
    assert path is not None
    model, optimizer = trained()
    state = checkpoint.restore(path, model, optimizer)
    assert path.name == f"step-{state.step}"
    assert torch.equal(model.weight, torch.full((2, 3), float(state.step)))
    return state.step


ACTIONS: dict[str, tuple[Callable[[Path], Any], set[int]]] = {
    "a new one": (lambda folder: save(folder, 8), {4, 8}),
    "the same again": (lambda folder: save(folder, 4), {4}),
    "its counters": (
        lambda folder: checkpoint.save_counters(folder / "step-4", TrainState(4, finished=True)),
        {4},
    ),
    "older ones deleted": (lambda folder: checkpoint.prune(folder, 1, None), {4}),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_whole_checkpoint_stands_whenever_the_process_is_killed(
    name: str, tmp_path: Path
) -> None:
    action, allowed = ACTIONS[name]

    def folder(number: int) -> Path:
        made = tmp_path / f"{number}"
        save(made, 2)
        save(made, 4)
        return made

    count = events_of(lambda: action(folder(-1))) - events_of(lambda: folder(-2))
    assert count > 3
    for event in range(count):
        checkpoints = folder(event)
        with killed_at(event), pytest.raises(Killed):
            action(checkpoints)
        assert restored(checkpoints) in allowed
        assert not list(checkpoints.glob(".*"))  # what the kill left is gone
        action(checkpoints)
        assert restored(checkpoints) == max(allowed)


def test_an_error_in_the_middle_of_a_replacement_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "content").write_text("old")
    real, renames = os.rename, 0

    def failing(*args: Any, **kwargs: Any) -> None:
        nonlocal renames
        renames += 1
        if renames == 2:
            raise OSError(5, "Input/output error")
        real(*args, **kwargs)

    patch_event(monkeypatch, "rename", lambda _: failing)
    with (
        pytest.raises(ResourceError, match="Input/output error"),
        atomic_folder(target, replace=True) as temporary,
    ):
        (temporary / "content").write_text("new")
    assert (target / "content").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_recovery_touches_only_what_belongs_to_the_path(tmp_path: Path) -> None:
    others = [".step-10.abcdefgh", ".step-1.notes", ".step-1", "step-1.abcdefgh", ".git"]
    for name in others:
        (tmp_path / name).mkdir()
    for name in (".step-1.abcdefgh", ".step-1.old.abcd_123"):
        (tmp_path / name).mkdir()
    recover(tmp_path / "step-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    remove_folder(tmp_path / ".git")
    assert not (tmp_path / ".git").exists()


STEPS = 3


def settings(model: Path, data: Path, out: Path) -> RunConfig:
    tree = {
        "out": str(out),
        "method": "lora",
        "model": {"name": str(model)},
        "data": {"train": str(data), "eval": str(data), "max_length": 64},
        "lora": {"rank": 2, "targets": ["q_proj"]},
        "train": {
            "steps": STEPS, "batch_size": 2, "learning_rate": 3e-3,
            "eval_steps": 1, "save_steps": 1, "keep_checkpoints": 1,
        },
    }  # fmt: skip
    return validate(RunConfig, tree)


def left_by(out: Path) -> tuple[Any, ...]:
    rows = read_metrics(out / "metrics.jsonl")
    tensors = safetensors.torch.load_file(out / "adapter" / "adapter_model.safetensors")
    return (
        [(row["step"], row["loss"], row["eval_loss"]) for row in rows],
        {name: tensor.tolist() for name, tensor in tensors.items()},
        sorted(path.name for path in (out / "checkpoints").iterdir()),
        sorted(path.name for path in out.iterdir()),
    )


# A temporary folder of the killed process is not removed: its finaliser dies too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_run_resumes_with_every_row_every_evaluation_and_the_same_result(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(rows_file.read_text().splitlines(keepends=True)[:6]))
    count = events_of(lambda: run(settings(tiny_llama, few, tmp_path / "whole"), progress=False))
    expected = left_by(tmp_path / "whole")
    resumed = 0
    for event in range(5, count, max(1, count // 14)):
        out = tmp_path / f"{event}"
        config = settings(tiny_llama, few, out)
        with killed_at(event), pytest.raises(Killed):
            run(config, progress=False)
        if checkpoint.latest(out / "checkpoints") is None:
            continue  # killed before the first checkpoint was complete
        resumed += 1
        assert run(config, resume=True, progress=False).finished
        assert left_by(out) == expected, event
    assert resumed >= 8

"""A disk that is too small is found out before the first step; one that fills breaks nothing."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graftlm.config import RunConfig, validate
from graftlm.errors import ResourceError
from graftlm.training import checkpoint, disk, loop, run
from graftlm.training.hooks.metrics_file import read_metrics


def settings(model: Path, data: Path, out: Path, method: str = "lora", **train: Any) -> RunConfig:
    few = out.parent / "few.jsonl"
    few.write_text("".join(data.read_text().splitlines(keepends=True)[:2]))
    tree = {
        "method": method,
        "out": str(out),
        "model": {"name": str(model)},
        "data": {"train": str(data), "eval": str(few), "max_length": 64},
        "train": {"steps": 4, "batch_size": 2} | train,
    }
    return validate(RunConfig, tree)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


@contextlib.contextmanager
def no_file_larger_than(nbytes: int) -> Iterator[None]:
    """A real failure of the operating system in the middle of a write; needs no privileges."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs privileges")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    "train",
    [{}, {"save_steps": 1}, {"save_steps": 1, "keep_checkpoints": 1, "eval_steps": 1}],
    ids=["one", "every", "best"],
)
def test_what_a_run_writes_is_known_before_it_starts(
    method: str,
    train: dict[str, Any],
    tiny_llama: Path,
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(tiny_llama, rows_file, tmp_path / "run", method, **train)
    predicted, most = 0, 0
    real_fit, real_prune = loop.fit, checkpoint.prune

    def fit(task: Any, **options: Any) -> Any:
        nonlocal predicted
        predicted = disk.run_bytes(task)
        return real_fit(task, **options)

    def prune(folder: Path, keep: int, best_step: int | None) -> None:
        nonlocal most
        most = max(most, size_of(tmp_path))
        real_prune(folder, keep, 1 if best_step else None)  # as if the first one were the best

    monkeypatch.setattr(sys.modules["graftlm.training.train"], "fit", fit)
    monkeypatch.setattr(checkpoint, "prune", prune)
    run(config, progress=False)
    most = max(most, size_of(tmp_path))
    assert most * 0.9 < predicted < most * 1.2


def test_a_disk_too_small_is_refused_before_anything_is_written(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"keep_checkpoints.*0\.05 GB free"):
        run(settings(tiny_llama, rows_file, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_checkpoints_already_written_count_as_room(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(disk, "require_free_space", lambda _, nbytes, __: asked.append(nbytes))
    config = settings(tiny_llama, rows_file, tmp_path / "run", save_steps=2)
    run(config, progress=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    run(config, resume=True, progress=False)
    assert asked[1] < asked[0]


def test_a_write_that_fails_leaves_the_checkpoint_before_it(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimiser's moments, written by safetensors, are what does not fit."""
    config = settings(tiny_llama, rows_file, tmp_path / "run", save_steps=2)
    real = checkpoint.save

    def save(folder: Path, *arguments: Any) -> None:
        with no_file_larger_than(200_000) if folder.name == "step-4" else contextlib.nullcontext():
            real(folder, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(ResourceError, match=r"cannot write .*step-4: File too large"):
            run(config, progress=False)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-2"]
    assert run(config, resume=True, progress=False).finished


def test_metrics_that_cannot_be_written_stop_the_run_with_a_reason(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tiny_llama, rows_file, tmp_path / "run", save_steps=1)
    real = loop.train_step
    steps = 0

    def step(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            full = (tmp_path / "run" / "metrics.jsonl").stat().st_size
            limits.enter_context(no_file_larger_than(full + 10))
        return real(*arguments)

    with contextlib.ExitStack() as limits, monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        with pytest.raises(ResourceError, match=r"metrics\.jsonl: File too large.*--resume"):
            run(config, progress=False)
    assert run(config, resume=True, progress=False).finished
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [
        *range(1, 5)
    ]


def test_a_real_full_disk_is_named_and_keeps_the_checkpoint_before(
    small_disk: Path, tiny_llama: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tiny_llama, rows_file, small_disk / "run", save_steps=1)
    with pytest.raises(ResourceError, match=r"but the disk has 0\.00 GB free"):
        run(config, progress=False)
    assert not (small_disk / "run").exists()

    monkeypatch.setattr(disk, "require_free_space", lambda *_: None)
    with pytest.raises(ResourceError, match=r"cannot write .*step-\d+: No space left on device"):
        run(config, progress=False)
    kept = sorted((small_disk / "run" / "checkpoints").iterdir())
    assert kept
    assert all(folder.name.startswith("step-") for folder in kept)  # and no temporary one
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert run(config, resume=True, progress=False).finished

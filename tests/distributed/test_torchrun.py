"""`torchrun … -m graftlm train` for real: it trains, restarts, and tells whose error it was."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo, and signals")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENDS = 90


@pytest.fixture
def settings(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> Path:
    """A run of twelve steps with a checkpoint after each."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"out: {tmp_path / 'run'}\ndistributed: fsdp\n"
        f"model: {{name: {tiny_llama}, dtype: float32}}\n"
        f"data: {{train: {rows_file}, max_length: 64}}\n"
        "lora: {rank: 4}\n"
        "train: {steps: 12, batch_size: 4, save_steps: 1}\n"
    )
    return path


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _torchrun(*words: Any) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, *map(str, words)]
    return subprocess.run(
        command, env=_environment(), capture_output=True, text=True, check=False, timeout=ENDS
    )


def test_torchrun_trains_one_model(settings: Path, tmp_path: Path) -> None:
    done = _torchrun("-m", "graftlm", "train", settings, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # of one process, and nothing else on stdout
    assert (result["steps"], result["finished"], result["processes"]) == (12, True, 2)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert done.stderr.count("tok/s") >= 1


def _on_two_machines(settings: Path, folders: tuple[Path, Path], *words: str) -> dict[str, Any]:
    """Two launchers that know each other by an address alone; each machine has its own disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{port}", "-m", "graftlm", "train", str(settings)]
    started = [
        subprocess.Popen(
            [*command, "--json", "--set", f"out={folder}", *words],
            env=_environment() | {"GRAFTLM_CACHE": str(folder.parent / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    try:
        ended = [one.communicate(timeout=ENDS) for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [0, 0], ended
    results = [json.loads(said) for said, _ in ended if said]
    assert len(results) == 1
    return dict(results[0])


def test_two_machines_train_one_model_and_only_the_first_needs_the_folder(
    settings: Path, tmp_path: Path
) -> None:
    folders = tmp_path / "one" / "run", tmp_path / "two" / "run"
    result = _on_two_machines(settings, folders, "--set", "train.steps=4")
    assert (result["steps"], result["finished"], result["processes"]) == (4, True, 2)
    result = _on_two_machines(settings, folders, "--set", "train.steps=6", "--resume")
    assert (result["steps"], result["finished"]) == (6, True)
    written = [folder for folder in folders if (folder / "metrics.jsonl").is_file()]
    assert len(written) == 1
    rows = [json.loads(line) for line in (written[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_killed_process_starts_again_from_the_last_checkpoint(
    settings: Path, tmp_path: Path
) -> None:
    settings.write_text(settings.read_text().replace("steps: 12", "steps: 60"))
    command = [*TORCHRUN, "--max-restarts", "1", "-m", "graftlm", "train", str(settings), "--json"]
    with subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as torchrun:
        checkpoints, end = tmp_path / "run" / "checkpoints", time.monotonic() + ENDS
        while not (checkpoints / "step-5").exists() and time.monotonic() < end:
            assert torchrun.poll() is None, torchrun.communicate()
            time.sleep(0.02)
        for child in psutil.Process(torchrun.pid).children(recursive=True):
            if child.environ().get("RANK") == "1":
                child.send_signal(signal.SIGKILL)
        said, told = torchrun.communicate(timeout=ENDS)
    assert torchrun.returncode == 0, told
    result = json.loads(said)
    assert (result["steps"], result["finished"]) == (60, True)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))


BROKEN = """
import os, sys
import torch
from graftlm.cli import main
from graftlm.training import step

whole = step.train_step

def broken(model, *rest, **others):
    if os.environ["RANK"] == "1":
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    return whole(model, *rest, **others)

import graftlm.training.loop
graftlm.training.loop.train_step = broken
main()
"""


def test_the_error_of_a_rank_is_told_once_and_ends_all(settings: Path, tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    done = _torchrun(script, "train", settings, "--set", "distributed=ddp")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: rank 1: the loss is nan on a batch of")


def test_an_error_of_all_ranks_is_told_once_and_has_its_exit_code(settings: Path) -> None:
    command = [sys.executable, "-m", "graftlm", "train", str(settings), "--processes", "2"]
    command += ["--set", "lora.targets=[nothing]"]
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, check=False, timeout=ENDS
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "nothing" in errors[0]

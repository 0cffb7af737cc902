"""What a killed process leaves is removed by the next one that writes there; nothing else is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from graftlm.files import atomic_folder, atomic_write, recover
from graftlm.training.lock import locked
from graftlm.training.run_folder import check_folder

WRITER = """
import os, signal, sys
from pathlib import Path
from graftlm.files import atomic_folder, atomic_write

path = Path(sys.argv[1])
with (atomic_folder(path) if sys.argv[2] == "folder" else atomic_write(path)) as temporary:
    (temporary / "part" if temporary.is_dir() else temporary).write_text("half")
    print("ready", flush=True)
    sys.argv[3] == "wait" and sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left_by_a_kill(path: Path, kind: str) -> list[Path]:
    subprocess.run([sys.executable, "-c", WRITER, str(path), kind, "die"], check=False)
    return [entry for entry in path.parent.iterdir() if entry.name.startswith(f".{path.name}.")]


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("next_kind", ["folder", "file"])
def test_the_next_writer_removes_it(kind: str, next_kind: str, tmp_path: Path) -> None:
    assert len(left_by_a_kill(tmp_path / "merged", kind)) == 1
    if next_kind == "folder":
        with atomic_folder(tmp_path / "other") as folder:
            (folder / "a").touch()
    else:
        with atomic_write(tmp_path / "other") as file:
            file.write_text("a")
    assert [entry.name for entry in tmp_path.iterdir()] == ["other"]


def test_what_a_living_process_writes_and_what_others_named_stays(tmp_path: Path) -> None:
    (tmp_path / ".notes.12345678").touch()
    (tmp_path / ".a.0badf00d-1.abcdefgh").touch()  # of another machine
    command = [sys.executable, "-c", WRITER, str(tmp_path / "live"), "folder", "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with atomic_write(tmp_path / "other") as file:
            file.write_text("a")
        names = sorted(entry.name for entry in tmp_path.iterdir())
        writer.kill()
    assert len(names) == 4
    assert names[-1] == "other"
    assert any(name.startswith(".live.") for name in names)


def test_the_only_copy_of_a_folder_is_left_for_recovery(tmp_path: Path) -> None:
    target = tmp_path / "step-2"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    killed = """
import os, signal, sys
from pathlib import Path
from graftlm.files import atomic_folder

renamed = []
original = Path.rename
def rename(self, to):
    original(self, to)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename
with atomic_folder(sys.argv[1], replace=True) as folder:
    (folder / "a").write_text("new")
"""
    subprocess.run([sys.executable, "-c", killed, str(target)], check=False)
    assert not target.exists()
    time.sleep(0.01)
    with atomic_write(tmp_path / "other") as file:
        file.write_text("a")
    recover(target)
    assert (target / "a").read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "step-2"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_run_killed_before_its_settings_stand_can_be_started_again(
    kind: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    assert len(left_by_a_kill(out / "config.yaml", kind)) == 1
    with locked(out):
        check_folder(out)
    assert list(out.iterdir()) == []  # a run that wrote nothing leaves nothing

"""The commands that the page has started, each in a folder of its own.

A job is one `graftlm` command. Its folder is all that is known of it, so a server that is started
anew finds the jobs of the one before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import psutil

from graftlm.errors import ArtifactError, printable
from graftlm.files import write_json
from graftlm.studio.place import Place

__all__ = ["Job", "Jobs", "shown"]

State = Literal["running", "done", "failed", "killed"]

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_STARTING_SECONDS = 60
"""How long a job may take to write which process it is."""
_MOST_OUTPUT = 16 << 20
_MOST_SAID = 20_000
_KEPT = 500
"""Older jobs than so many are forgotten when a new one starts."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        id: its folder's name.
        kind: what the page calls it, such as ``train``.
        words: the command's words after `graftlm`.
        about: the run or the file that it is about.
        started: seconds since 1970.
    """

    id: str
    kind: str
    words: list[str]
    about: str
    started: float

    @property
    def command(self) -> str:
        """The command as a line to paste into a terminal."""
        return shown(self.words)


def shown(words: list[str]) -> str:
    """A command as one line for a shell, without the flag that asks for JSON."""
    return shlex.join(["graftlm", *(word for word in words if word != "--json")])


class Jobs:
    """The jobs of a studio."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def start(self, kind: str, words: list[str], about: str = "") -> Job:
        """Start ``graftlm WORDS`` as a process that outlives this one."""
        self._forget_old()
        stamp = time.strftime("%Y%m%d-%H%M%S")
        job = Job(f"{stamp}-{secrets.token_hex(4)}", kind, words, about, time.time())
        folder = self._place.jobs / job.id
        folder.mkdir(mode=0o700)
        write_json(folder / "job.json", dataclasses.asdict(job) | {"work": str(self._place.work)})
        with (folder / "wrapper.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "graftlm.studio.job", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # The system keeps a process that has ended until its parent has waited for it.
        threading.Thread(target=child.wait, daemon=True).start()
        return job

    def all(self) -> list[Job]:
        """All jobs, the latest first."""
        names = (path.name for path in self._place.jobs.iterdir())
        found = [self._read(name) for name in sorted(names, reverse=True) if _ID.fullmatch(name)]
        return [job for job in found if job is not None]

    def one(self, id: str) -> Job:
        """The job of this id.

        Raises:
            ArtifactError: there is none.
        """
        job = self._read(id) if _ID.fullmatch(id) else None
        if job is None:
            raise ArtifactError(f"there is no job {printable(id)[:60]!r}")
        return job

    def state(self, job: Job) -> State:
        """Whether the command runs, has ended well, has failed, or was killed."""
        ended = self._record(job, "exit.json")
        if ended is not None:
            return "done" if ended["code"] == 0 else "failed"
        if self._process(job, "around") is not None:
            return "running"
        if self._record(job, "process.json") is None:
            young = time.time() - job.started < _STARTING_SECONDS
            log = self._place.jobs / job.id / "wrapper.log"
            return "running" if young and not log.read_bytes() else "failed"
        ended = self._record(job, "exit.json")  # it may have ended between the two looks
        return "killed" if ended is None else "done" if ended["code"] == 0 else "failed"

    def described(self, job: Job) -> dict[str, Any]:
        """The job for the page: its state, what it said, and its result where it has one."""
        state = self.state(job)
        ended = self._record(job, "exit.json")
        out = self._text(job, "stdout", _MOST_OUTPUT)
        result = None
        if ended is not None and out:
            with contextlib.suppress(ValueError):  # a command that failed may have printed nothing
                result = json.loads(out)
        said = self._text(job, "stderr", _MOST_SAID) or self._text(job, "wrapper.log", _MOST_SAID)
        return {
            "id": job.id,
            "kind": job.kind,
            "about": job.about,
            "started": job.started,
            "seconds": round(self._ended_at(job) - job.started, 1),
            "command": job.command,
            "state": state,
            "code": ended and ended["code"],
            "said": printable(said),
            "result": result,
        }

    def stop(self, job: Job) -> None:
        """Interrupt the command, as Ctrl-C would."""
        process = self._process(job, "command")
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)

    def _process(self, job: Job, who: str) -> psutil.Process | None:
        """A process of the job, if it lives; its number may have gone to another process.

        Args:
            job: the job.
            who: ``command``, or ``around``: the one that waits for the command.
        """
        known = self._record(job, "process.json")
        if known is None:
            return None
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(known[who]["pid"])
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and abs(process.create_time() - known[who]["created"]) < 1:
                return process
        return None

    def _ended_at(self, job: Job) -> float:
        with contextlib.suppress(OSError):
            return (self._place.jobs / job.id / "exit.json").stat().st_mtime
        return time.time()

    def _read(self, id: str) -> Job | None:
        record = _json(self._place.jobs / id / "job.json")
        if record is None:
            return None
        return Job(**{name: record[name] for name in Job.__dataclass_fields__})

    def _record(self, job: Job, name: str) -> dict[str, Any] | None:
        return _json(self._place.jobs / job.id / name)

    def _text(self, job: Job, name: str, most: int) -> str:
        """The last ``most`` bytes of a file of the job."""
        try:
            with (self._place.jobs / job.id / name).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - most))
                return file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _forget_old(self) -> None:
        for job in self.all()[_KEPT:]:
            if self.state(job) != "running":
                shutil.rmtree(self._place.jobs / job.id)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found

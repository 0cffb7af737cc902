"""The runs in the runs folder: what each one is, and how far it is.

A run is read from its folder alone, so it does not matter who started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any, Literal

import psutil

from graftlm.config import RunConfig, recorded_config
from graftlm.errors import ArtifactError, GraftLMError, printable
from graftlm.studio.curves import Metrics, curves_of
from graftlm.studio.place import Place

__all__ = ["Runs"]

State = Literal["running", "paused", "finished", "unreadable"]

_DEPTH = 3
"""Runs of a comparison lie two folders deeper: NAME/runs/METHOD."""


class Runs:
    """The runs of a studio. The names are paths below the runs folder, with slashes."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._metrics: dict[str, Metrics] = {}
        self._configs: dict[Path, tuple[tuple[int, int], RunConfig]] = {}

    def names(self) -> list[str]:
        """The names of all runs, the latest first. Links are not followed."""
        found: list[tuple[float, str]] = []
        self._look_in(self._place.runs, "", found)
        return [name for _, name in sorted(found, reverse=True)]

    def folder(self, name: str) -> Path:
        """The folder of the run ``name``.

        Only names that `names` lists are known, so no name leads out of the runs folder.

        Raises:
            ArtifactError: there is no such run.
        """
        if name not in self.names():
            raise ArtifactError(f"there is no run {printable(name)[:100]!r}")
        return self._place.runs / name

    def all(self) -> list[dict[str, Any]]:
        """All runs, the latest first."""
        return [self._described(name, self._place.runs / name) for name in self.names()]

    def described(self, name: str) -> dict[str, Any]:
        """One run for a list: its settings in short, its state and its last figures."""
        return self._described(name, self.folder(name))

    def _described(self, name: str, folder: Path) -> dict[str, Any]:
        try:
            config = self._config(folder)
        except (GraftLMError, OSError) as error:
            return {"name": name, "state": "unreadable", "error": printable(str(error))}
        summary = _json(folder / "summary.json")
        metrics = self._rows(name)
        state: State = "running" if self._process(folder) else "paused"
        steps, done = config.train.steps, metrics.rows[-1]["step"] if metrics.rows else 0
        # A finished run that was given more steps has rows past its summary.
        if state == "paused" and summary.get("finished") and done <= summary["steps"]:
            state = "finished"
        each = metrics.seconds_per_step
        waits = state == "running" and steps is not None and each is not None
        return {
            "name": name,
            "state": state,
            "path": str(folder),
            "method": config.method,
            "model": Path(config.model.name).name,
            "rank": None if config.method == "full" else config.lora.rank,
            "data": Path(str(config.data.train)).name,
            "step": done,
            "steps": steps,
            "seconds_left": (steps - done) * each if waits and steps and each else None,
            "changed": _changed(folder),
            "last": metrics.rows[-1] if metrics.rows else None,
            "summary": summary or None,
        }

    def curves(self, name: str) -> dict[str, Any]:
        """The curves of one run."""
        folder = self.folder(name)
        return curves_of(self._rows(name), _json(folder / "summary.json"))

    def stop(self, name: str, *, now: bool = False) -> None:
        """Pause a run as Ctrl-C would: it writes a checkpoint and ends.

        Args:
            name: the run.
            now: end it at once instead; it can go on from its last checkpoint.

        Raises:
            ArtifactError: no process of this machine runs there.
        """
        process = self._process(self.folder(name))
        if process is None:
            raise ArtifactError(f"no process of this machine runs in {name}")
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT) if not now else process.kill()

    def _process(self, folder: Path) -> psutil.Process | None:
        """The process that trains in ``folder``: the one that `.running` names and that has
        `.lock` open. A copied folder may name any process, so the name alone proves nothing.
        """
        who = _json(folder / ".running")
        if not isinstance(who.get("pid"), int) or who.get("host") != socket.gethostname():
            return None
        lock = str((folder / ".lock").resolve())
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(who["pid"])
            if any(file.path == lock for file in process.open_files()):
                return process
        return None

    def _rows(self, name: str) -> Metrics:
        path = self._place.runs / name / "metrics.jsonl"
        metrics = self._metrics.setdefault(name, Metrics(path))
        metrics.refresh()
        return metrics

    def _config(self, folder: Path) -> RunConfig:
        path = folder / "config.yaml"
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._configs.get(folder)
        if known is None or known[0] != stamp:
            known = self._configs[folder] = (stamp, recorded_config(path))
        return known[1]

    def _look_in(self, folder: Path, prefix: str, found: list[tuple[float, str]]) -> None:
        for entry in os.scandir(folder):
            if not entry.is_dir(follow_symlinks=False) or entry.name.startswith("."):
                continue
            name = f"{prefix}{entry.name}"
            path = Path(entry.path)
            with contextlib.suppress(OSError):  # it may be removed while we look
                if (path / "config.yaml").is_file():
                    found.append((_changed(path), name))
                elif name.count("/") < _DEPTH - 1 and name != self._place.exports.name:
                    self._look_in(path, f"{name}/", found)


def _changed(folder: Path) -> float:
    path = folder / "metrics.jsonl"
    return (path if path.exists() else folder / "config.yaml").stat().st_mtime


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none, or where it is just being written."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}

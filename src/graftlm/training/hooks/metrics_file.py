"""`metrics.jsonl`: the run's record, one JSON object a step."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, TextIO

from graftlm.errors import ArtifactError, ResourceError
from graftlm.files import atomic_write
from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook

__all__ = ["MetricsFile", "read_metrics"]


class MetricsFile(Hook):
    """Appends each step's row; a resumed run first drops the rows past its checkpoint.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self._file: TextIO | None = None

    def run_begins(self, active: ActiveRun) -> None:
        """Open the file and cut it at the row where the run continues."""
        kept = [row for row in read_metrics(self.path) if row["step"] <= active.state.step]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def step_ends(self, active: ActiveRun) -> None:
        """Append the row and hand it to the operating system.

        Raises:
            ResourceError: the disk is full.
        """
        assert self._file is not None
        try:
            self._file.write(json.dumps(active.row) + "\n")
            self._file.flush()
        except OSError as error:
            raise ResourceError(
                f"cannot write {self.path}: {error.strerror or error}. The checkpoints written so "
                "far stand: free some space, then go on from the last one with --resume."
            ) from error

    def checkpoint_begins(self, active: ActiveRun) -> None:
        """Write the rows to the disk before the checkpoint of their steps."""
        assert self._file is not None
        os.fsync(self._file.fileno())

    def failed(self, active: ActiveRun, error: BaseException) -> None:
        """Close the file. This retries an unwritten line, whose failure is already reported."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def closed(self, active: ActiveRun) -> None:
        """Write everything to the disk and close the file."""
        if self._file is not None:
            with self._file:
                os.fsync(self._file.fileno())
            self._file = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, without a last line that a crash cut off.

    Raises:
        ArtifactError: a line before it is damaged.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        for line in lines[:-1]:  # text after the last newline is incomplete
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("expected an object with the number of its step")
            rows.append(row)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: line {len(rows) + 1} is damaged ({error}). Remove the line, or move the file "
            "away: the run then goes on without the record of its steps so far."
        ) from error
    return rows

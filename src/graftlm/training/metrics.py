"""The run's record, a line a step: `metrics.jsonl`, and TensorBoard on request."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from graftlm.errors import ResourceError
from graftlm.files import atomic_write

__all__ = ["MetricsLog", "read_metrics", "require_tensorboard"]


class MetricsLog:
    """Appends one JSON object a line; on resume, lines past the checkpoint are dropped first."""

    def __init__(self, folder: Path, last_step: int, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= last_step]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _tensorboard_writer(folder) if tensorboard else None

    def write(self, row: dict[str, Any]) -> None:
        """Append ``row`` (it must have a ``step``) and flush it to the operating system.

        Raises:
            ResourceError: the disk is full.
        """
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise ResourceError(
                f"cannot write {self.path}: {error.strerror or error}. The checkpoints written so "
                "far stand: free some space, then go on from the last one with --resume."
            ) from error
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, row["step"])

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A line that could not be written is tried again here: its error has been raised already.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is unfinished


def require_tensorboard() -> Any:
    """The class that writes TensorBoard's files.

    Raises:
        ResourceError: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ResourceError(
            "train.tensorboard needs the tensorboard package: pip install 'graftlm[tensorboard]'"
        ) from error
    return SummaryWriter


def _tensorboard_writer(folder: Path) -> Any:
    return require_tensorboard()(str(folder / "tensorboard"))

"""The curves of a run from its `metrics.jsonl`, read as it grows.

Only what was appended is read again. A resumed run replaces its file, which starts the reading
anew. `training.hooks.metrics_file` reads the same file, but loads torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftlm.report.curves import held_out_curve, running_mean, training_curve

__all__ = ["Metrics", "curves_of"]

_RECENT = 50
"""Steps that the time left is estimated from."""
_NAMES = ("loss", "learning_rate", "tokens_per_second", "memory_bytes")


class Metrics:
    """The rows of one `metrics.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._identity: tuple[int, int] | None = None
        self._offset = 0

    def refresh(self) -> None:
        """Read what was appended; a line without its end is left for the next time."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            self.rows, self._offset, self._identity = [], 0, None
            return
        with file:
            status = self.path.stat()
            identity = (status.st_dev, status.st_ino)
            if identity != self._identity or status.st_size < self._offset:
                self.rows, self._offset, self._identity = [], 0, identity
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        self.rows += [json.loads(line) for line in whole.splitlines() if line]

    @property
    def seconds_per_step(self) -> float | None:
        """The mean over the last steps, evaluations and checkpoints left out."""
        recent = [row for row in self.rows[-_RECENT:] if row["tokens_per_second"] > 0]
        if not recent:
            return None
        seconds = [float(row["tokens"] / row["tokens_per_second"]) for row in recent]
        return sum(seconds) / len(seconds)


def curves_of(metrics: Metrics, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The curves for the page, each of at most 400 points whatever the length of the run.

    Each is a list of (step, value); ``smooth`` is the running mean of the loss.
    """
    finite = [row for row in metrics.rows if _is_finite(row.get("loss"))]
    curves: dict[str, Any] = {name: training_curve(finite, name) for name in _NAMES}
    curves["smooth"] = running_mean(curves["loss"])
    measured = [row for row in metrics.rows if _is_finite(row.get("eval_loss", 0.0))]
    curves["eval_loss"] = held_out_curve(measured, summary)
    return curves


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

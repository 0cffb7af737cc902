"""The progress line on stderr: loss, speed, memory, time left."""

from __future__ import annotations

from typing import Any

from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook

__all__ = ["ProgressLine"]


class ProgressLine(Hook):
    """Redraws one line after each step."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def run_begins(self, active: ActiveRun) -> None:
        """Draw the line."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        figures = "loss {task.fields[loss]} · {task.fields[speed]} tok/s · {task.fields[memory]}"
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(figures),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "train",
            total=active.run.total_steps,
            completed=active.state.step,
            loss="–",
            speed="–",
            memory="–",
        )

    def step_ends(self, active: ActiveRun) -> None:
        """Redraw the line."""
        row = active.row
        self._bar.update(
            self._task,
            completed=row["step"],
            loss=f"{row['loss']:.4f}",
            speed=f"{row['tokens_per_second']:.0f}",
            memory=f"{row['memory_bytes'] / 1e9:.2f} GB",
        )

    def closed(self, active: ActiveRun) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.stop()

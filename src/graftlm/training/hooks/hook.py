"""The contract of a hook, which a run calls at fixed points.

    run_begins
        step_begins                     evaluation_ends: before the first step
            (one optimiser step)
        step_ends                       evaluation_ends: where one is due
            checkpoint_begins, checkpoint_written       where one is due
    run_ends                            the result is written
    failed                              instead, where an exception ends the run
    closed                              always, last

Evaluation, checkpoints, metrics and the like are hooks. `hooks/__init__.py` lists graftlm's own, in
order. The user's hooks (`graftlm.train(..., hooks=[…])`) run after the evaluation and before the
metrics row is written, so their additions to `ActiveRun.row` are recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftlm.training.active_run import ActiveRun
    from graftlm.training.run import RunResult

__all__ = ["Hook"]


class Hook:
    """Called at fixed points of a run; a subclass defines those that it needs.

    ``active`` is the run. A hook may read all of it, add numbers to ``active.row`` and end the run
    by ``active.stop()`` or ``active.pause()``. An exception from a hook ends the run.
    """

    def run_begins(self, active: ActiveRun) -> None:
        """Before the first step of this process; ``active.state.step`` says which one that is."""

    def step_begins(self, active: ActiveRun) -> None:
        """Before an optimiser step; ``active.state.step`` steps are done."""

    def step_ends(self, active: ActiveRun) -> None:
        """After an optimiser step; ``active.row`` holds its metrics."""

    def evaluation_ends(self, active: ActiveRun, loss: float) -> None:
        """After the held-out rows were measured."""

    def checkpoint_begins(self, active: ActiveRun) -> None:
        """Before a checkpoint is written. A hook must flush files that may not be older than it."""

    def checkpoint_written(self, active: ActiveRun, folder: Path) -> None:
        """After a checkpoint was written, complete."""

    def run_ends(self, active: ActiveRun, result: RunResult) -> None:
        """After the run finished or paused and its summary was written."""

    def failed(self, active: ActiveRun, error: BaseException) -> None:
        """An exception ends the run; it is raised again afterwards."""

    def closed(self, active: ActiveRun) -> None:
        """Always the last call, even if the run failed before `run_begins`."""

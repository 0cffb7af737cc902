"""The contract of a hook: what is called at fixed points of a run.

    run_begins
        step_begins                     evaluation_ends: before the first step
            (one optimiser step)
        step_ends                       evaluation_ends: where one is due
            checkpoint_begins, checkpoint_written       where one is due
    run_ends                            the result is written
    failed                              instead, where an exception ends the run
    closed                              always, last

Everything that happens now and then in a run is a hook: `hooks/__init__.py` lists graftlm's own, in
order. Hooks from outside (`graftlm.train(..., hooks=[…])`) come after the evaluation and before the
metrics row is written, so that what they add to `ActiveRun.row` is recorded.
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
        """Before a checkpoint is written: what must not be older than it goes to the disk now."""

    def checkpoint_written(self, active: ActiveRun, folder: Path) -> None:
        """After a checkpoint was written, complete."""

    def run_ends(self, active: ActiveRun, result: RunResult) -> None:
        """After the run was finished or paused, and its summary written."""

    def failed(self, active: ActiveRun, error: BaseException) -> None:
        """An exception ends the run; it is raised again afterwards."""

    def closed(self, active: ActiveRun) -> None:
        """The last call, however the run ended and even if `run_begins` was not reached."""

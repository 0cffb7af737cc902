"""During a run, Python's garbage collector skips the objects that existed before the run."""

from __future__ import annotations

import contextlib

from graftlm.system import long_lived_objects_set_aside
from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook

__all__ = ["GarbageCollection"]


class GarbageCollection(Hook):
    """Saves 3 % of a step on two cores: see `long_lived_objects_set_aside`."""

    def __init__(self) -> None:
        self._set_aside = contextlib.ExitStack()

    def run_begins(self, active: ActiveRun) -> None:
        """Exclude the existing objects from collection."""
        self._set_aside.enter_context(long_lived_objects_set_aside())

    def closed(self, active: ActiveRun) -> None:
        """Include them again."""
        self._set_aside.close()

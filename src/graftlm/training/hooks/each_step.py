"""A plain function as a hook: it is called with the metrics of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook

__all__ = ["Callback", "EachStep", "as_hook"]

Callback = Union[Hook, Callable[[dict[str, Any]], object]]  # noqa: UP007 - evaluated on Python 3.10
"""A hook, or a function of the metrics of a step."""


class EachStep(Hook):
    """Calls ``function(metrics)`` after each step, with a row of `metrics.jsonl`.

    The row also has ``eval_loss`` where an evaluation was due.
    """

    def __init__(self, function: Callable[[dict[str, Any]], object]) -> None:
        self.function = function

    def step_ends(self, active: ActiveRun) -> None:
        """Call it with a copy, so that it changes nothing."""
        self.function(dict(active.row))


def as_hook(one: Callback) -> Hook:
    """The hook that ``one`` is or stands for."""
    return one if isinstance(one, Hook) else EachStep(one)

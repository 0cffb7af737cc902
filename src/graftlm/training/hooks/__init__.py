"""The hooks: actions at fixed points of a run, one hook per file."""

from __future__ import annotations

from collections.abc import Sequence

from graftlm.training.hooks.checkpoints import Checkpoints
from graftlm.training.hooks.each_step import Callback, as_hook
from graftlm.training.hooks.early_stopping import EarlyStopping
from graftlm.training.hooks.evaluation import Evaluation
from graftlm.training.hooks.garbage_collection import GarbageCollection
from graftlm.training.hooks.hook import Hook
from graftlm.training.hooks.metrics_file import MetricsFile
from graftlm.training.hooks.progress_line import ProgressLine
from graftlm.training.hooks.samples import Samples
from graftlm.training.hooks.tracking import tracker
from graftlm.training.run import Run

__all__ = ["Callback", "Hook", "hooks_of"]


def hooks_of(run: Run, *, progress: bool, others: Sequence[Callback] = ()) -> list[Hook]:
    """The hooks of a run in the order of their calls; ``others`` are the user's.

    The metrics row of a step is written after it is complete and before the checkpoint of the step.
    A run that is killed in between repeats the step and loses nothing. Of several processes only
    the main one writes and draws.
    """
    hooks: list[Hook] = [GarbageCollection(), Evaluation(), *map(as_hook, others)]
    if run.placement.is_main:
        hooks.append(MetricsFile(run.out))
        if run.config.train.samples and run.eval_examples:
            hooks.append(Samples(run.out, run.config.train.samples))
        if run.config.train.tracking != "none":
            hooks.append(tracker(run))
        if progress:
            hooks.append(ProgressLine())
    return [*hooks, Checkpoints(), EarlyStopping()]

"""A checkpoint is written every `train.save_steps`, and of each best evaluation."""

from __future__ import annotations

from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook

__all__ = ["Checkpoints"]


class Checkpoints(Hook):
    """The last checkpoint of a run is the loop's: it is written at any rate."""

    def step_ends(self, active: ActiveRun) -> None:
        """Save, where it is due."""
        step, every = active.state.step, active.run.config.train.save_steps
        if active.state.best_step == step or (every and step % every == 0):
            active.save_checkpoint()

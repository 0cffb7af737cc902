"""Writes a checkpoint every `train.save_steps` steps and after each best evaluation."""

from __future__ import annotations

from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook

__all__ = ["Checkpoints"]


class Checkpoints(Hook):
    """Writes all checkpoints except the last one of a run, which the loop always writes."""

    def step_ends(self, active: ActiveRun) -> None:
        """Save a checkpoint if one is due."""
        step, every = active.state.step, active.run.config.train.save_steps
        if active.state.best_step == step or (every and step % every == 0):
            active.save_checkpoint()

"""Ends the run after `train.early_stopping_patience` evaluations without a better one."""

from __future__ import annotations

from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook

__all__ = ["EarlyStopping"]


class EarlyStopping(Hook):
    """Reads the counter in the run's state, so that a resumed run continues to count."""

    def step_ends(self, active: ActiveRun) -> None:
        """Stop if the patience is used up."""
        patience = active.run.config.train.early_stopping_patience
        if patience and active.state.stale_evaluations >= patience:
            active.stop()

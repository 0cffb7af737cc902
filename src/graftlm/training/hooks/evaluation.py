"""Measures the held-out rows before the first step and every `train.eval_steps` steps."""

from __future__ import annotations

import math
import sys

from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook

__all__ = ["Evaluation"]


class Evaluation(Hook):
    """Measures the loss and keeps the best measurement in the run's state."""

    def step_begins(self, active: ActiveRun) -> None:
        """Measure the untrained model before the first step of the run."""
        state = active.state
        # A NaN is recorded as null, so a resumed run may lack the value: its model has changed.
        if active.run.eval_examples and state.step == 0 and state.eval_loss_before is None:
            state.eval_loss_before = active.evaluate()

    def step_ends(self, active: ActiveRun) -> None:
        """If an evaluation is due, measure and write the loss to the row's ``eval_loss``.

        Only a finite loss can be the best: no loss is less than NaN.
        """
        state, every = active.state, active.run.config.train.eval_steps
        if not every or not active.run.eval_examples or state.step % every:
            return
        loss = active.row["eval_loss"] = active.evaluate()
        if not math.isfinite(loss):
            print(
                f"step {state.step}: the held-out loss is {loss}; it cannot be the best",
                file=sys.stderr,
            )
            state.stale_evaluations += 1
        elif state.best_eval_loss is None or loss < state.best_eval_loss:
            state.best_eval_loss, state.best_step, state.stale_evaluations = loss, state.step, 0
        else:
            state.stale_evaluations += 1

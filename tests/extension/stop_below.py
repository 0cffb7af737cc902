"""A hook as a user writes it: the run ends, with its result, once the loss is low enough."""

from __future__ import annotations

from graftlm.extend import ActiveRun, Hook


class StopBelow(Hook):
    def __init__(self, loss: float) -> None:
        self.loss = loss

    def step_ends(self, active: ActiveRun) -> None:
        active.row["above"] = active.row["loss"] - self.loss
        if active.row["above"] < 0:
            active.stop()

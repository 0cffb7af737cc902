"""`plan --verify`: really runs a planned setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from graftlm.config import RunConfig
from graftlm.planning.planner import Option
from graftlm.planning.trace import BatchShape
from graftlm.planning.trial_run import LIMIT_SECONDS, STEPS, Measured, run_trial

__all__ = ["Verified", "verified"]

SLOW_STEP = 20.0
"""Seconds of a step above which a trial run makes two steps instead of three."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """The comparison of a real run with its prediction."""

    option: Option
    measured: Measured

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.option.predicted_peak_bytes / self.measured.peak_bytes - 1


def verified(
    config: RunConfig, option: Option, shape: BatchShape, progress: Callable[[str], None]
) -> Verified:
    """Run ``option`` for a few steps; for two if a step is slow.

    Args:
        config: the run's settings.
        option: the option to run.
        shape: its largest micro-batch.
        progress: is called with the expected time, then with the current state.
    """
    steps = 2 if (option.seconds_per_step or 0.0) > SLOW_STEP else STEPS
    name = f"running {option.method}, {option.rows} × {option.length}, {steps} steps"
    progress(f"{name}, stopped after {LIMIT_SECONDS} s at the latest")
    length = option.length // shape.sequences if shape.rows == 1 else option.length
    measured = run_trial(
        option.setting.applied(config),
        length,
        shape.padded,
        steps=steps,
        progress=lambda where: progress(f"{name}: {where} (of {LIMIT_SECONDS} s)"),
    )
    return Verified(option, measured)

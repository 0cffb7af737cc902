"""`plan --verify`: really runs a planned setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from graftlm.config import RunConfig
from graftlm.errors import TrainingError
from graftlm.planning.option import Option
from graftlm.planning.trace import BatchShape
from graftlm.planning.trial_run import LIMIT_SECONDS, STEPS, Measured, run_trial

__all__ = ["Verified", "verified"]

SLOW_STEP = 20.0
"""Seconds of a step above which a trial run makes two steps instead of three."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """An option, and its measured memory and time or why its run failed."""

    option: Option
    measured: Measured | None
    failure: str | None = None

    @property
    def error(self) -> float | None:
        """Relative error of the predicted peak; ``None`` if the run failed."""
        if self.measured is None:
            return None
        return self.option.predicted_peak_bytes / self.measured.peak_bytes - 1

    def to_json(self) -> dict[str, Any]:
        """The entry in `graftlm plan --json`."""
        return dataclasses.asdict(self.option) | {
            "measured_peak_bytes": self.measured and self.measured.peak_bytes,
            "measured_seconds_per_step": self.measured and self.measured.seconds_per_step,
            "error": self.error,
            "failure": self.failure,
        }


def verified(
    config: RunConfig, option: Option, shape: BatchShape, progress: Callable[[str], None]
) -> Verified:
    """Run ``option``, whose largest micro-batch is ``shape``, for a few steps; two if slow."""
    steps = 2 if (option.seconds_per_step or 0.0) > SLOW_STEP else STEPS
    name = f"running {option.method}, {option.rows} × {option.length}, {steps} steps"
    progress(f"{name}, stopped after {LIMIT_SECONDS} s at the latest")
    try:
        measured = run_trial(
            option.applied(config),
            option.length // shape.sequences if shape.rows == 1 else option.length,
            shape.padded,
            steps=steps,
            progress=lambda where: progress(f"{name}: {where} (of {LIMIT_SECONDS} s)"),
        )
    except TrainingError as error:  # the plan and the other runs are still worth having
        return Verified(option, None, str(error))
    return Verified(option, measured)

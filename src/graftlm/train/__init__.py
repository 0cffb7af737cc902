"""Training: loss, step, loop, schedule, checkpoints."""

from __future__ import annotations

from graftlm.train.evaluate import EvalResult, evaluate
from graftlm.train.loop import RunResult
from graftlm.train.run import run, train

__all__ = ["EvalResult", "RunResult", "evaluate", "run", "train"]

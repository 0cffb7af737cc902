"""Training: objective, step, loop, schedule, checkpoints."""

from __future__ import annotations

from graftlm.training.evaluation import EvalResult, evaluate
from graftlm.training.run import RunResult
from graftlm.training.train import run, train

__all__ = ["EvalResult", "RunResult", "evaluate", "run", "train"]

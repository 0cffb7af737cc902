"""Training: loss, step, loop, schedule, checkpoints.

`graftlm.train` is this package and, called, its function of the same name.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from graftlm.train.evaluation import EvalResult, evaluate
from graftlm.train.job import run, train
from graftlm.train.task import RunResult

__all__ = ["EvalResult", "RunResult", "evaluate", "run", "train"]


class _CallablePackage(types.ModuleType):
    """Python binds a subpackage's name in its parent; this lets that name be called as well."""

    def __call__(self, *args: Any, **kwargs: Any) -> RunResult:
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage

"""Planning: predicts the memory and time of a run and recommends a method."""

from __future__ import annotations

from graftlm.planning.decide import choose, decide, run
from graftlm.planning.option import Option
from graftlm.planning.plan import Plan, make_plan, row_lengths
from graftlm.planning.trial_run import Measured, run_trial
from graftlm.planning.verify import Verified

__all__ = [
    "Measured",
    "Option",
    "Plan",
    "Verified",
    "choose",
    "decide",
    "make_plan",
    "row_lengths",
    "run",
    "run_trial",
]

"""Knowing before you start: memory and time of a run, and which method to take."""

from __future__ import annotations

from graftlm.plan.api import Plan, Verified, choose, make_plan, row_lengths
from graftlm.plan.planner import Option
from graftlm.plan.rehearsal import Measured, rehearse
from graftlm.plan.sizes import format_size, parse_size

__all__ = [
    "Measured",
    "Option",
    "Plan",
    "Verified",
    "choose",
    "format_size",
    "make_plan",
    "parse_size",
    "rehearse",
    "row_lengths",
]

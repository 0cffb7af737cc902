"""Methods side by side: the same rows, the same seeds, a process each, and what came of it."""

from __future__ import annotations

from graftlm.report.compare.api import OUTSIDE, Comparison, compare
from graftlm.report.compare.figures import Figures, Spread
from graftlm.report.compare.verdict import verdict

__all__ = ["OUTSIDE", "Comparison", "Figures", "Spread", "compare", "verdict"]

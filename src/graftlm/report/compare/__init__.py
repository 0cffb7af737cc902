"""Compares methods on the same rows and seeds, each run in its own process."""

from __future__ import annotations

from graftlm.report.compare.api import OUTSIDE, Comparison, compare
from graftlm.report.compare.figures import Figures, Spread
from graftlm.report.compare.verdict import verdict

__all__ = ["OUTSIDE", "Comparison", "Figures", "Spread", "compare", "verdict"]

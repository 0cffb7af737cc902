"""Reports for people: charts, tables, pages."""

from __future__ import annotations

from graftlm.report.terminal import line_chart

__all__ = ["line_chart"]

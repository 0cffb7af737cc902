"""What people read: the demo, charts, tables."""

from __future__ import annotations

from graftlm.report.demo import DemoResult, DemoSettings, run_demo
from graftlm.report.terminal import line_chart

__all__ = ["DemoResult", "DemoSettings", "line_chart", "run_demo"]

"""The demo: its rows and its stages, separate from the library."""

from __future__ import annotations

from graftlm.demo.stages import DemoResult, DemoSettings, run_demo

__all__ = ["DemoResult", "DemoSettings", "run_demo"]

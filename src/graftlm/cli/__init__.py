"""The command line: one file per command; each parses, calls the library and prints."""

from __future__ import annotations

from graftlm.cli.app import main

__all__ = ["main"]

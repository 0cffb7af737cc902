"""The command line: one file a command, each parses, calls the library, prints."""

from __future__ import annotations

from graftlm.cli.app import main

__all__ = ["main"]

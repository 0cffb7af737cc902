"""Hooks of the site: it gets the help of the commands, and loses the links to the source."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

SOURCE_LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:src|examples|benchmarks|tests)/[^)]*\)")


def commands() -> str:
    """The help of every command as Markdown, written by typer."""
    words = ["-m", "typer", "graftlm.cli.app", "utils", "docs", "--name", "graftlm"]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, encoding="utf-8", check=True
    )
    return done.stdout.partition("\n")[2]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page as the site shows it."""
    if page.file.src_uri == "commands.md":
        markdown += commands()
    return SOURCE_LINK.sub(r"\1", markdown)

"""Turn what a command printed into an SVG picture for the README.

graftlm demo --out demo-run | python docs/picture.py docs/images/demo.svg
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text


def main() -> None:
    """Read standard input, write the file named."""
    lines = [line.rstrip() for line in sys.stdin.read().strip("\n").splitlines()]
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True)
    for line in lines:
        style = "green" if "✓" in line else "red" if "✗" in line else ""
        console.print(Text(line, style=style))
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(console.export_svg(title="graftlm demo"), encoding="utf-8")


if __name__ == "__main__":
    main()

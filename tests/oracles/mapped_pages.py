"""What Linux says of the mapped files of this process."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["resident_pages"]


def resident_pages(folder: Path) -> int:
    """Kilobytes of the folder's files that this process has mapped and in memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found

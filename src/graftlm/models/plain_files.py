"""Refuses folders that hold something other than files."""

from __future__ import annotations

from pathlib import Path

from graftlm.errors import GraftLMError

__all__ = ["require_plain_files"]


def require_plain_files(folder: Path, error: type[GraftLMError]) -> None:
    """Refuse a folder with a pipe, a socket or a device in it, whose reading may never end."""
    for entry in sorted(folder.iterdir()):
        if entry.exists() and not (entry.is_file() or entry.is_dir()):
            raise error(f"{entry} is no plain file but a pipe, a socket or a device. Remove it.")

"""Keeps a tokenizer on disk while it is not needed: Gemma's takes 470 MB of memory."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["StoredTokenizer"]


class StoredTokenizer:
    """The files of a tokenizer, on disk during a ``with`` block; free the tokenizer inside it."""

    def __init__(self, tokenizer: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="graftlm-tokenizer-")
        tokenizer.save_pretrained(self._folder.name)

    def __enter__(self) -> StoredTokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the same files as the tokenizer's own method."""
        shutil.copytree(self._folder.name, folder, dirs_exist_ok=True)

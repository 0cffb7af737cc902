"""A tokenizer that is no longer needed until its files are: Gemma's takes 470 MB of memory."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["StoredTokenizer"]


class StoredTokenizer:
    """The files of a tokenizer, kept on disk inside a ``with``; drop the tokenizer there."""

    def __init__(self, tokenizer: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="graftlm-tokenizer-")
        tokenizer.save_pretrained(self._folder.name)

    def __enter__(self) -> StoredTokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what the tokenizer would have written."""
        shutil.copytree(self._folder.name, folder, dirs_exist_ok=True)

"""Keeps a tokenizer on disk while it is not needed: Gemma's takes 470 MB of memory."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from graftlm.files import temporary_folder
from graftlm.models.saved_tokenizer import write_tokenizer

__all__ = ["StoredTokenizer"]


class StoredTokenizer:
    """The files of a tokenizer, on disk during a ``with`` block; free the tokenizer inside it."""

    def __init__(self, tokenizer: Any) -> None:
        with contextlib.ExitStack() as opened:
            self._folder = opened.enter_context(temporary_folder("tokenizer"))
            write_tokenizer(tokenizer, self._folder)
            self._open = opened.pop_all()
        self.class_name = type(tokenizer).__name__

    def __enter__(self) -> StoredTokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the same files as the tokenizer's own method."""
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)

"""Text that comes with graftlm, for calibration and comparison where the user has given no data.

It was written for graftlm and is in the public domain: prose in several languages, dialogue, code,
mathematics, tables and lists. `calibration.txt` holds paragraphs separated by blank lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from graftlm.data.example import Example

__all__ = ["shipped_examples", "text_windows"]

TEXT = Path(__file__).parent / "calibration.txt"


def shipped_examples(tokenizer: Any, length: int = 256) -> list[Example]:
    """The shipped text in windows of ``length`` tokens, every token supervised."""
    return text_windows(TEXT.read_text(encoding="utf-8"), tokenizer, length)


def text_windows(text: str, tokenizer: Any, length: int) -> list[Example]:
    """``text`` in windows of ``length`` tokens that begin as the tokenizer begins a text.

    The last, shorter window is left out unless it is the only one.
    """
    return list(_windows(text, tokenizer, length))


def _windows(text: str, tokenizer: Any, length: int) -> Iterator[Example]:
    ids = tokenizer(text).input_ids
    begins = [tokenizer.bos_token_id] if ids and ids[0] == tokenizer.bos_token_id else []
    body, step = ids[len(begins) :], length - len(begins)
    for start in range(0, max(1, len(body) - step + 1), step):
        window = [*begins, *body[start : start + step]]
        yield Example(np.array(window, dtype=np.int32), np.ones(len(window), dtype=np.bool_))

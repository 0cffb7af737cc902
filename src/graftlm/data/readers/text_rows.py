"""Plain text: a file is one row, or several if it is large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from graftlm.data.readers.lines import as_text
from graftlm.data.readers.raw import Raw

__all__ = ["read_text"]

_BLOCK = 1 << 20
"""Characters after which a text is cut at the next blank line; at any line end from twice that."""


def read_text(name: str, file: BinaryIO) -> Iterator[Raw]:
    """One row per file; a text of many megabytes is cut between paragraphs or lines."""
    parts: list[str] = []
    size, number, first = 0, 0, 1
    with as_text(file) as text:
        while line := text.readline(_BLOCK):
            number += line.endswith(("\n", "\r"))
            parts.append(line.replace("\r\n", "\n"))
            size += len(line)
            if (size >= _BLOCK and not line.strip()) or size >= 2 * _BLOCK:
                yield Raw(name, first, {"text": "".join(parts)})
                parts, size, first = [], 0, number + 1
    if "".join(parts).strip():
        yield Raw(name, first, {"text": "".join(parts)})

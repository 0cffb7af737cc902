"""Lines of a file, each of a bounded size, in UTF-8 or the encoding of the byte order mark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO, TextIO, cast

from graftlm.data.messages import RowError
from graftlm.data.readers.raw import MAX_ROW

__all__ = ["as_text", "byte_lines", "peek"]

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF32 = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
_BLOCK = 1 << 20


def peek(file: BinaryIO) -> tuple[BinaryIO, bytes]:
    """The file, buffered, and its first bytes, which stay unread."""
    buffered: Any = file if hasattr(file, "peek") else io.BufferedReader(cast("Any", file))
    return buffered, buffered.peek(4096)


def as_text(file: BinaryIO) -> TextIO:
    """The file as text: UTF-8, or UTF-16 where a byte order mark says so (Excel's "Unicode text").

    Line ends are left as they are.

    Raises:
        UnicodeError: it is UTF-32, or UTF-16 without a mark, which read as UTF-8 would be text with
            a null character beside each letter.
    """
    buffered, head = peek(file)
    if head[:4] in _UTF32:
        raise UnicodeError("it is UTF-32; save it as UTF-8")
    if head[:2] not in _UTF16 and b"\0" in head:
        raise UnicodeError(
            "it holds null characters, as UTF-16 without a byte order mark does; save it as UTF-8"
        )
    encoding = "utf-16" if head[:2] in _UTF16 else "utf-8-sig"
    return io.TextIOWrapper(buffered, encoding=encoding, newline="")


def byte_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | RowError]]:
    """Line numbers from 1, with the lines as UTF-8.

    A line longer than `MAX_ROW` is skipped block by block, so that it is never in memory as a
    whole; a `RowError` replaces it.
    """
    buffered, head = peek(file)
    if head[:2] in _UTF16:
        with as_text(buffered) as text:
            number = 0
            while line16 := text.readline(MAX_ROW + 1):
                number += 1
                size = len(line16)
                yield number, line16.encode() if size <= MAX_ROW else too_large(size)
        return
    number = 0
    while line := buffered.readline(MAX_ROW + 1):
        number += 1
        if len(line) <= MAX_ROW:
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            continue
        size = len(line)
        while not line.endswith(b"\n") and (line := buffered.readline(_BLOCK)):
            size += len(line)
        yield number, too_large(size)


def too_large(size: int) -> RowError:
    """The error for a row of ``size`` bytes."""
    return RowError(
        f"the row has {size:,} bytes, expected at most {MAX_ROW:,}; cut it into several rows"
    )

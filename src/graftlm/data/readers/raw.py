"""One row as it was read, before anyone knows what it means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from graftlm.data.messages import RowError

__all__ = ["MAX_ROW", "Raw", "json_problem"]

MAX_ROW = 8 << 20
"""Bytes of the largest row that is read: tokenising takes up to 220 bytes of memory for each."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One row: where it stands, and its value (bytes: a line of JSON that is not parsed yet).

    A line stays bytes so that the process that tokenises it also parses it. A row that cannot be
    read has a `RowError` as its value.
    """

    file: str
    line: int
    value: Any
    notes: tuple[tuple[str, str], ...] = ()
    """What the reader noticed: (kind of finding, what was found)."""

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"

    def parse(self) -> Any:
        """The row's value.

        Raises:
            RowError: it could not be read; says what was found.
        """
        if isinstance(self.value, RowError):
            raise self.value
        return _parse_json(self.value) if isinstance(self.value, bytes) else self.value


def _parse_json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(
            f"byte {error.start} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        found = line.strip()[:60].decode("utf-8", errors="replace")
        raise RowError(
            f"{json_problem(error)}: found {found!r}; expected one JSON object a line"
        ) from None


def json_problem(error: Exception) -> str:
    """What Python's parser says, including what it says as a plain `ValueError`."""
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg} at column {error.colno})"
    return f"not valid JSON ({str(error).split(';')[0]})"  # e.g. a number of 5,000 digits

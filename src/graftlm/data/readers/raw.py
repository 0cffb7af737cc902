"""One row as it was read, before it is interpreted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from graftlm.data.messages import RowError

__all__ = ["MAX_ROW", "Raw", "json_problem", "object_of"]

MAX_ROW = 8 << 20
"""Maximum bytes of a row: tokenising takes up to 220 bytes of memory for each byte."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One row: its position and its value (bytes: a line of JSON that is not parsed yet).

    A line stays bytes, so that the process that tokenises it also parses it. A row that cannot be
    read has a `RowError` as its value.
    """

    file: str
    line: int
    value: Any
    notes: tuple[tuple[str, str], ...] = ()
    """The reader's notes: (kind of finding, details)."""

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"

    def parse(self) -> Any:
        """The row's value.

        Raises:
            RowError: it could not be read; the message gives the reason.
        """
        if isinstance(self.value, RowError):
            raise self.value
        return _parse_json(self.value) if isinstance(self.value, bytes) else self.value


def _parse_json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=object_of)
    except UnicodeDecodeError as error:
        raise RowError(
            f"byte {error.start} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from None
    except RowError:
        raise
    except (ValueError, RecursionError) as error:
        found = line.strip()[:60].decode("utf-8", errors="replace")
        raise RowError(
            f"{json_problem(error)}: found {found!r}; expected one JSON object a line"
        ) from None


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; Python's parser would keep the last of two values with one name.

    Raises:
        RowError: a name stands twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"{twice[:40]!r} stands twice in one object; expected each name once")
    return found


def json_problem(error: Exception) -> str:
    """The message for an error of Python's parser, which may be a plain `ValueError`."""
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg} at column {error.colno})"
    return f"not valid JSON ({str(error).split(';')[0]})"  # e.g. a number of 5,000 digits

"""Raw rows from files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftlm.errors import DataError

__all__ = ["Raw", "read_rows"]


@dataclass(frozen=True, slots=True)
class Raw:
    """One row as read: where it stands, and its value or what is wrong with it."""

    file: str
    line: int
    value: Any
    error: str | None = None

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"


def read_rows(source: str | Path) -> Iterator[Raw]:
    """The rows of a JSONL file; blank lines are skipped.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    path = Path(source)
    if not path.is_file():
        raise DataError(f"data file {path} does not exist; expected a JSONL file, one row a line")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield parse_line(str(path), number, line)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def parse_line(file: str, number: int, line: bytes) -> Raw:
    """One line of JSONL."""
    try:
        return Raw(file, number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")))
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not UTF-8 ({error.reason}); save the file as UTF-8"
    except json.JSONDecodeError as error:
        found = line.strip()[:60].decode("utf-8", errors="replace")
        problem = (
            f"not valid JSON ({error.msg} at column {error.colno}): found {found!r}; "
            "expected one JSON object a line"
        )
    except RecursionError:
        problem = "JSON nested too deeply"
    return Raw(file, number, None, problem)

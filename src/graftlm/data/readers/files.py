"""The reader of each kind of file, and its error messages."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from graftlm.data.readers.arrow_rows import read_arrow, read_parquet
from graftlm.data.readers.csv_rows import read_separated
from graftlm.data.readers.json_rows import read_json, read_jsonl
from graftlm.data.readers.lines import peek
from graftlm.data.readers.raw import Raw
from graftlm.data.readers.text_rows import read_text
from graftlm.data.readers.workbook import read_workbook
from graftlm.errors import DataError, near_matches

__all__ = ["READERS", "read_file", "read_stream", "suffix_of"]

_COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_BUFFER = 1 << 20

READERS: dict[str, Callable[[str, BinaryIO], Iterator[Raw]]] = {
    ".arrow": read_arrow,
    ".csv": read_separated(","),
    ".feather": read_arrow,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".md": read_text,
    ".ndjson": read_jsonl,
    ".parquet": read_parquet,
    ".tsv": read_separated("\t"),
    ".txt": read_text,
    ".xlsx": read_workbook,
}
"""Suffix → reader."""
_SPREADSHEETS = {".xls", ".xlsb", ".xlsm", ".ods", ".numbers"}


def suffix_of(path: Path) -> str:
    """The suffix for the format, without that of the compression."""
    name = path.name.lower()
    for compression in _COMPRESSED:
        name = name.removesuffix(compression)
    return Path(name).suffix


def read_file(path: Path) -> Iterator[Raw]:
    """The rows of a file, in its order.

    Raises:
        DataError: the file cannot be opened, is damaged, or has a format graftlm does not read.
    """
    suffix = suffix_of(path)
    reader = READERS.get(suffix)
    if reader is None:
        advice = ""
        if suffix in _SPREADSHEETS:
            advice = '; save it in the spreadsheet program as .xlsx or "CSV UTF-8"'
        raise DataError(
            f"{path} has the suffix {suffix or '(none)'}; expected one of "
            f"{', '.join(sorted(READERS))}{advice or near_matches(suffix, READERS)}"
        )
    yield from _read(str(path), reader, lambda: _open(path))


def read_stream(name: str, stream: BinaryIO) -> Iterator[Raw]:
    """The rows of a pipe, which has no suffix: JSON lines, a JSON array, or CSV."""
    buffered, head = peek(stream)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    first_line = head.split(b"\n", 1)[0]
    reader: Callable[[str, BinaryIO], Iterator[Raw]] = read_jsonl
    if start == b"[":
        reader = read_json
    elif start != b"{" and any(mark in first_line for mark in (b",", b";", b"\t")):
        reader = READERS[".csv"]
    yield from _read(name, reader, lambda: buffered)


def _read(
    name: str, reader: Callable[[str, BinaryIO], Iterator[Raw]], opened: Callable[[], BinaryIO]
) -> Iterator[Raw]:
    try:
        with opened() as file:
            yield from reader(name, file)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8 "
            '(in Excel: "CSV UTF-8")'
        ) from error
    except UnicodeError as error:
        raise DataError(f"{name} is not text: {error}") from error
    except (OSError, pa.ArrowException, EOFError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["no reason"])[0]
        raise DataError(f"cannot read {name}: {reason}") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() not in _COMPRESSED:
        return path.open("rb")
    kind = _COMPRESSED[path.suffix.lower()]  # Arrow itself looks for small letters only
    return io.BufferedReader(pa.input_stream(str(path), compression=kind), _BUFFER)

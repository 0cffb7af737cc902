"""Reading one file, whatever its format, row by row.

A row is read as far as it can be without its neighbours: a line of JSONL stays bytes, so that the
process that tokenises it also parses it. What is wrong with a row travels in its place.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from graftlm.data.messages import RowError
from graftlm.errors import DataError, near_matches

__all__ = ["READERS", "Raw", "read_file", "suffix_of"]

_COMPRESSED = (".gz", ".zst", ".bz2")
_TEXT_BLOCK = 1 << 20
_HOLDERS = ("data", "rows", "examples", "train")
"""Keys under which an object of JSON holds its rows."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One row as read: where it stands, and its value (bytes: a line of JSON)."""

    file: str
    line: int
    value: Any

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
    except json.JSONDecodeError as error:
        found = line.strip()[:60].decode("utf-8", errors="replace")
        raise RowError(
            f"not valid JSON ({error.msg} at column {error.colno}): found {found!r}; "
            "expected one JSON object a line"
        ) from None
    except RecursionError:
        raise RowError("JSON nested too deeply") from None


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, without that of the compression."""
    name = path.name.lower()
    for compression in _COMPRESSED:
        name = name.removesuffix(compression)
    return Path(name).suffix


def read_file(path: Path, stream: BinaryIO | None = None) -> Iterator[Raw]:
    """The rows of a file, in its order.

    Raises:
        DataError: the file cannot be opened, is damaged, or has a format graftlm does not read.
    """
    suffix = suffix_of(path)
    reader = READERS.get(suffix)
    if reader is None:
        raise DataError(
            f"{path} has the suffix {suffix or '(none)'}; expected one of "
            f"{', '.join(sorted(READERS))}{near_matches(suffix, READERS)}"
        )
    try:
        with _open(path) if stream is None else stream as file:
            yield from reader(str(path), file)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except (OSError, pa.ArrowInvalid, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"cannot read {path}: {reason}") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() not in _COMPRESSED:
        return path.open("rb")
    return io.BufferedReader(pa.input_stream(str(path), compression="detect"), _TEXT_BLOCK)


def _jsonl(name: str, file: BinaryIO) -> Iterator[Raw]:
    for number, line in enumerate(file, start=1):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not text.isspace():
            yield Raw(name, number, text)


def _json(name: str, file: BinaryIO) -> Iterator[Raw]:
    """An array of rows, an object that holds one, or lines of JSON under the wrong suffix."""
    data = file.read()
    text = data.decode("utf-8-sig")
    start = text.lstrip()[:1]
    if start == "[":
        yield from _json_array(name, text)
        return
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        lines = data.splitlines()
        if len(lines) > 1 and lines[0].rstrip().endswith(b"}"):  # lines of JSON after all
            yield from _jsonl(name, io.BytesIO(data))
        else:
            problem = RowError(f"not valid JSON ({error}); expected an array of objects")
            yield Raw(name, getattr(error, "lineno", 1), problem)
        return
    rows = [value]
    if isinstance(value, dict):
        rows = next((value[k] for k in _HOLDERS if isinstance(value.get(k), list)), rows)
    for number, row in enumerate(rows, start=1):
        yield Raw(name, number, row)


def _json_array(name: str, text: str) -> Iterator[Raw]:
    decoder = json.JSONDecoder()
    at, line = text.index("[") + 1, 1
    counted = 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line += text.count("\n", counted, at)
        counted = at
        if at < len(text) and text[at] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            found = text[at : at + 40]
            problem = f"not valid JSON ({getattr(error, 'msg', error)}): found {found!r}"
            yield Raw(name, line, RowError(f"{problem}; expected an array of objects"))
            return
        yield Raw(name, line, value)


def _separated(delimiter: str) -> Callable[[str, BinaryIO], Iterator[Raw]]:
    def read(name: str, file: BinaryIO) -> Iterator[Raw]:
        csv.field_size_limit(2**31 - 1)
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text, delimiter=delimiter, strict=True)
            try:
                for row in rows:
                    yield Raw(name, rows.line_num, _fields(row, rows.fieldnames or ()))
            except csv.Error as error:
                yield Raw(name, rows.line_num, RowError(f"not valid CSV: {error}"))

    return read


def _fields(row: dict[str | None, Any], header: Sequence[str]) -> Any:
    """The row, or what is wrong with its number of fields."""
    surplus = row.get(None, ())  # csv keeps what no column names under None
    if not surplus and None not in row.values():
        return row
    given = sum(row[column] is not None for column in header) + len(surplus)
    return RowError(
        f"found {given} fields, expected {len(header)} as in the header; quote fields that hold "
        "the separator"
    )


def _parquet(name: str, file: BinaryIO) -> Iterator[Raw]:
    import pyarrow.parquet as pq

    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield Raw(name, number, row)


def _arrow(name: str, file: BinaryIO) -> Iterator[Raw]:
    head = file.read(6)
    file.seek(0)
    number = 0
    if head == b"ARROW1":
        opened = pa.ipc.open_file(file)
        batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(file))
    for batch in batches:
        for start in range(0, batch.num_rows, 1024):
            for row in batch.slice(start, 1024).to_pylist():
                number += 1
                yield Raw(name, number, row)


def _plain(name: str, file: BinaryIO) -> Iterator[Raw]:
    """A text is one row; one of many megabytes becomes several, cut between paragraphs."""
    held: list[str] = []
    size, first = 0, 1
    with io.TextIOWrapper(file, encoding="utf-8-sig") as text:
        for number, line in enumerate(text, start=1):
            held.append(line)
            size += len(line)
            if size >= _TEXT_BLOCK and not line.strip():
                yield Raw(name, first, {"text": "".join(held)})
                held, size, first = [], 0, number + 1
    if "".join(held).strip():
        yield Raw(name, first, {"text": "".join(held)})


READERS: dict[str, Callable[[str, BinaryIO], Iterator[Raw]]] = {
    ".arrow": _arrow,
    ".csv": _separated(","),
    ".feather": _arrow,
    ".json": _json,
    ".jsonl": _jsonl,
    ".md": _plain,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
    ".tsv": _separated("\t"),
    ".txt": _plain,
}
"""Suffix → reader."""

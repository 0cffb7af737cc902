"""Tables as text: CSV from Excel, pandas and databases, with any common separator.

Excel writes `;` between fields if the comma is the decimal sign (Vietnam, most of Europe), may
begin with a line ``sep=;``, and calls tab-separated UTF-16 "Unicode text". The header determines
the separator; if it leaves a choice, the following rows do.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, TextIO

from graftlm.data.messages import RowError
from graftlm.data.readers.lines import as_text
from graftlm.data.readers.raw import MAX_ROW, Raw

__all__ = ["read_separated", "table_rows"]

_SEPARATORS = (",", ";", "\t", "|")
_SAMPLE = 30
_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


def read_separated(usual: str) -> Callable[[str, BinaryIO], Iterator[Raw]]:
    """A reader of tables whose separator is ``usual``, or the one that the header shows."""

    def read(name: str, file: BinaryIO) -> Iterator[Raw]:
        with as_text(file) as text:
            yield from _table(name, text, usual)

    return read


def _table(name: str, text: TextIO, usual: str) -> Iterator[Raw]:
    csv.field_size_limit(MAX_ROW)
    lines = _bounded(text)
    sample: list[str] = []
    notes: tuple[tuple[str, str], ...] = ()
    reader, skipped = None, 0
    try:
        sample += itertools.islice(lines, _SAMPLE)
        separator = _named_in(sample[0]) if sample else None
        skipped = 0 if separator is None else 1
        separator = separator or _separator(sample, usual)
        if separator != usual:
            notes = (("separator", f"{name}: fields are separated by {_in_words(separator)}"),)
        rest = itertools.chain(sample[skipped:], lines)
        reader = csv.reader(rest, delimiter=separator, strict=True)
        table = ((reader.line_num + skipped, fields) for fields in reader)
        yield from table_rows(name, table, notes)
    except csv.Error as error:
        line = 1 if reader is None else reader.line_num + skipped
        yield Raw(name, line, RowError(f"not valid CSV: {error}"))


def _named_in(line: str) -> str | None:
    """The separator that a first line such as ``sep=;`` names."""
    said = line.strip("\r\n ")
    return said[4] if said.lower().startswith("sep=") and len(said) == 5 else None


def _in_words(separator: str) -> str:
    return _NAMES.get(separator, repr(separator))


def _bounded(text: TextIO) -> Iterator[str]:
    while line := text.readline(MAX_ROW + 1):
        if len(line) > MAX_ROW:
            raise csv.Error(f"a line has more than {MAX_ROW:,} characters")
        yield line


def _separator(sample: Sequence[str], usual: str) -> str:
    """The separator with most fields in the header and the same number in the rows."""

    def fits(separator: str) -> tuple[bool, float, bool, int]:
        rows = [row for row in csv.reader(sample, delimiter=separator) if row]
        if not rows or len(rows[0]) < 2:
            return (False, 0.0, separator == usual, 0)
        like_header = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        return (True, like_header, separator == usual, len(rows[0]))

    return max((usual, *_SEPARATORS), key=fits)


def table_rows(
    name: str, table: Iterable[tuple[int, Sequence[str | None]]], notes: tuple[tuple[str, str], ...]
) -> Iterator[Raw]:
    """Rows as columns by name, from a table whose first row is the header.

    Args:
        name: the file's.
        table: (line, fields); rows without content are skipped.
        notes: notes on the file, attached to the first row.
    """
    header: list[str] | None = None
    for line, fields in table:
        if not any(field is not None and field.strip() for field in fields):
            continue
        if header is None:
            header = [(field or "").strip() for field in fields]
            while header and not header[-1]:
                header.pop()  # Excel ends a row with separators where a column was emptied
            twice = sorted({column for column in header if column and header.count(column) > 1})
            if twice:
                problem = f"the header names {', '.join(map(repr, twice))} twice"
                yield Raw(name, line, RowError(f"{problem}; give each column its own name"))
                return
            continue
        yield Raw(name, line, _row(fields, header), notes)
        notes = ()


def _row(fields: Sequence[str | None], header: Sequence[str]) -> object:
    """The row, or an error about its number of fields."""
    surplus = fields[len(header) :]
    if len(fields) < len(header) or any(field and field.strip() for field in surplus):
        return RowError(
            f"found {len(fields)} fields, expected {len(header)} as in the header; quote fields "
            "that hold the separator"
        )
    return dict(zip(header, fields, strict=False))

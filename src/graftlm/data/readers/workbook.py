"""Excel workbooks: the first sheet is a table whose first row names the columns."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from graftlm.data.readers.csv_rows import table_rows
from graftlm.data.readers.raw import Raw
from graftlm.errors import DataError

__all__ = ["read_workbook"]

_MAX_UNPACKED = 1 << 30
"""Maximum bytes of XML in a workbook, because all of its texts are held in memory."""


def read_workbook(name: str, file: BinaryIO) -> Iterator[Raw]:
    """The rows of an ``.xlsx`` file; cells become text as Excel shows them.

    Raises:
        DataError: openpyxl is not installed, or the file is no workbook.
    """
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f"{name} is an Excel workbook, which needs the package openpyxl: "
            "pip install 'graftlm[excel]'. Or save it in Excel as \"CSV UTF-8\"."
        ) from None
    try:
        size = sum(item.file_size for item in zipfile.ZipFile(file).infolist())
        if size > _MAX_UNPACKED:
            raise DataError(
                f"{name} unpacks to {size:,} bytes, expected at most {_MAX_UNPACKED:,}; "
                'save it in Excel as "CSV UTF-8"'
            )
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheets = book.worksheets
        if not sheets:
            raise DataError(f"{name} has no sheet with cells")
        notes: tuple[tuple[str, str], ...] = ()
        if len(sheets) > 1:
            others = ", ".join(sheet.title for sheet in sheets[1:])
            notes = (
                ("sheets_left_out", f"{name}: the sheet {sheets[0].title} is read; {others} not"),
            )
        rows = enumerate(sheets[0].iter_rows(values_only=True), start=1)
        yield from table_rows(name, ((n, [*map(_text, cells)]) for n, cells in rows), notes)
    except DataError:
        raise
    except Exception as error:  # openpyxl raises the errors of its XML and zip parsers
        raise DataError(
            f"cannot read {name} as an Excel workbook: {str(error) or type(error).__name__}"
        ) from error


def _text(value: Any) -> str | None:
    """A cell's value as text; ``None`` for an empty cell."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)

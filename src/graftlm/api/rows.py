"""Rows in hand, under a name that a run can record.

A run reads its rows again when it is resumed, merged or compared, in processes of their own. Rows
that a caller holds in memory are therefore written once, to `rows/DIGEST/rows.jsonl` in the cache.
The digest is that of their content: the same rows have the same name, in every session.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

from graftlm.cache import once
from graftlm.data.folders import Purpose
from graftlm.data.messages import RowError
from graftlm.data.sources import Data, open_source
from graftlm.errors import DataError
from graftlm.files import temporary_folder

__all__ = ["Rows", "named_rows"]

Rows = Union[Data, Mapping[str, Any]]  # noqa: UP007 - evaluated on Python 3.10
"""The name of a source; rows; splits of rows; or ``{source: weight}``."""


def named_rows(rows: Rows, purpose: Purpose = "train") -> str | dict[str, float]:
    """The name of ``rows``, as `data.train` and `data.eval` take it.

    Args:
        rows: a name is given back as it is.
        purpose: which of several splits is taken.

    Raises:
        DataError: a row holds something that is neither text nor a number.
    """
    if isinstance(rows, str | Path):
        return str(rows)
    if isinstance(rows, Mapping) and all(isinstance(w, int | float) for w in rows.values()):
        return {str(name): float(weight) for name, weight in rows.items()}
    digest = hashlib.blake2b(digest_size=16)
    with temporary_folder("rows") as folder:
        written = folder / "rows.jsonl"
        with written.open("wb") as file:
            for row in open_source(rows, purpose):
                line = _line(row.where, row.parse())
                digest.update(line)
                file.write(line)

        def make(target: Path) -> None:
            shutil.copyfile(written, target / "rows.jsonl")

        return str(once("rows", digest.hexdigest(), make) / "rows.jsonl")


def _line(where: str, row: Any) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=_as_text).encode() + b"\n"
    except (TypeError, ValueError, RowError) as error:
        raise DataError(f"{where}: {error}; expected text, numbers, lists and dicts") from None


def _as_text(value: Any) -> Any:
    """A value that JSON does not have: dates and the like as text, NumPy's numbers as numbers."""
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal | uuid.UUID):
        return str(value)
    if callable(plain := getattr(value, "tolist", None)):  # a number or an array of NumPy
        return plain()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"it holds a {type(value).__name__}")

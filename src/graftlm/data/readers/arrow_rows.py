"""Arrow and Parquet: tables of typed columns.

Arrow has one type for all values of a column. If an object lacks a key of another row's object, it
is stored with that key and null. The reader removes such nulls inside objects; otherwise a model
would learn to call tools with arguments that the row does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa

from graftlm.data.messages import RowError
from graftlm.data.readers.raw import Raw

__all__ = ["read_arrow", "read_parquet", "without_nulls"]

_ROWS = 1024


def read_parquet(name: str, file: BinaryIO) -> Iterator[Raw]:
    """Rows of a Parquet file, read in batches."""
    import pyarrow.parquet as pq

    yield from _rows(name, pq.ParquetFile(file).iter_batches(batch_size=_ROWS))


def read_arrow(name: str, file: BinaryIO) -> Iterator[Raw]:
    """Rows of an Arrow file or stream, or a Feather file."""
    head = file.read(6)
    file.seek(0)
    if head == b"ARROW1":
        opened = pa.ipc.open_file(file)
        batches: Iterable[pa.RecordBatch] = (
            opened.get_batch(i) for i in range(opened.num_record_batches)
        )
    else:
        batches = iter(pa.ipc.open_stream(file))
    yield from _rows(name, batches)


def _rows(name: str, batches: Iterable[pa.RecordBatch]) -> Iterator[Raw]:
    number = 0
    for batch in batches:
        if twice := sorted(
            {one for one in batch.schema.names if batch.schema.names.count(one) > 1}
        ):
            said = f"the table names {', '.join(map(repr, twice))} twice"
            yield Raw(name, 1, RowError(f"{said}; give each column its own name"))
            return
        # Offsets outside the buffers would crash the process instead of raising.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _ROWS):
            for row in _as_python(batch.slice(start, _ROWS)):
                number += 1
                pruned = {key: without_nulls(value) for key, value in row.items()}
                problem = next((v for v in row.values() if isinstance(v, RowError)), None)
                yield Raw(name, number, problem or pruned)


def _as_python(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch; values without a Python type become text or a `RowError`."""
    if not any(_in_nanoseconds(field.type) for field in batch.schema):
        try:
            return list(batch.to_pylist())
        except (ValueError, OverflowError, pa.ArrowException):
            pass  # column by column, to see which
    columns = {
        column: _values(column, batch.column(i)) for i, column in enumerate(batch.schema.names)
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(column: str, values: pa.Array) -> list[Any]:
    """A column's values; text if Python has no type for them, such as times in nanoseconds."""
    problem = "Python has no times in nanoseconds"
    if not _in_nanoseconds(values.type):
        try:
            return list(values.to_pylist())
        except (ValueError, OverflowError, pa.ArrowException) as error:
            problem = str(error)
    try:
        return list(values.cast(pa.string()).to_pylist())
    except pa.ArrowException:
        said = RowError(f"the column {column} ({values.type}) cannot be read: {problem}")
        return [said] * len(values)


def _in_nanoseconds(kind: pa.DataType) -> bool:
    """Whether values are, or hold, such times: Arrow reads them as pandas does where that is."""
    inner = (kind.field(i).type for i in range(kind.num_fields))
    return getattr(kind, "unit", "") == "ns" or any(map(_in_nanoseconds, inner))


def without_nulls(value: Any) -> Any:
    """``value`` without the keys of objects inside it that are null."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value

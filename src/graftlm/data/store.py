"""Examples in Arrow: in memory, or in a file that is memory-mapped.

One record batch per chunk: ``input_ids`` list<int32>, ``supervised`` list<bool> (a bit each), and
``row`` uint64, the content hash of the example's row. It takes about 4.2 bytes per token.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graftlm.data.example import Example
from graftlm.data.prepare import Prepared
from graftlm.data.report import LoadReport

__all__ = ["DamagedCacheError", "Examples", "in_memory", "open_folder", "write_folder"]

_ARROW, _REPORT = "examples.arrow", "report.json"

_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("row", pa.uint64()),
    ]
)


def _record_batch(part: Prepared) -> pa.RecordBatch:
    offsets = np.zeros(len(part.lengths) + 1, dtype=np.int32)
    np.cumsum(part.lengths, out=offsets[1:])
    edges = pa.array(offsets)
    ids = pa.ListArray.from_arrays(edges, pa.array(part.input_ids))
    supervised = pa.ListArray.from_arrays(edges, pa.array(part.supervised))
    return pa.record_batch([ids, supervised, pa.array(part.hashes)], schema=_SCHEMA)


class _Columns:
    """One record batch as numpy views; nothing is copied."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        ids, supervised, rows = batch.columns
        self.offsets = ids.offsets.to_numpy()
        self.ids: npt.NDArray[np.int32] = ids.values.to_numpy()
        self.supervised = supervised.values
        self.hashes: npt.NDArray[np.uint64] = rows.to_numpy()

    def __getitem__(self, index: int) -> Example:
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        learned = self.supervised.slice(start, end - start).to_numpy(zero_copy_only=False)
        return Example(self.ids[start:end], learned)


class Examples(Sequence[Example]):
    """Examples by index, read when they are accessed.

    Attributes:
        report: the report on their rows.
        lengths: int32, (examples,): tokens in each example.
        hashes: uint64, (examples,): content hash of each example's row.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], report: LoadReport) -> None:
        self.report = report
        self._parts = [_Columns(batch) for batch in batches if batch.num_rows]
        sizes = [len(part.hashes) for part in self._parts]
        self._starts = np.cumsum([0, *sizes])
        self._index: npt.NDArray[np.int64] | None = None
        nothing32, nothing64 = np.zeros(0, np.int32), np.zeros(0, np.uint64)
        self.lengths: npt.NDArray[np.int32] = np.concatenate(
            [nothing32, *[np.diff(part.offsets).astype(np.int32) for part in self._parts]]
        )
        self.hashes: npt.NDArray[np.uint64] = np.concatenate(
            [nothing64, *[part.hashes for part in self._parts]]
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = index % len(self)
        if self._index is not None:
            number = int(self._index[number])
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._parts[part][number - int(self._starts[part])]

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    @property
    def highest_id(self) -> int:
        """The largest token id in the data of these examples; -1 if there is none."""
        return max((int(part.ids.max(initial=-1)) for part in self._parts), default=-1)

    def select(self, index: npt.NDArray[np.int64]) -> Examples:
        """A view of these examples, in this order, possibly with repetitions."""
        view = Examples((), self.report)
        view._parts, view._starts = self._parts, self._starts
        view._index = index if self._index is None else self._index[index]
        view.lengths, view.hashes = self.lengths[index], self.hashes[index]
        return view

    @staticmethod
    def joined(parts: Sequence[Examples]) -> Examples:
        """All parts' examples, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        report = LoadReport()
        view = Examples((), report)
        indices: list[npt.NDArray[np.int64]] = []
        at = 0
        for part in parts:
            report.add(part.report)
            total = int(part._starts[-1])
            own = np.arange(total) if part._index is None else part._index
            indices.append(own + at)
            view._parts += part._parts
            at += total
        view._starts = np.cumsum([0, *[len(columns.hashes) for columns in view._parts]])
        view._index = np.concatenate(indices)
        view.lengths = np.concatenate([part.lengths for part in parts])
        view.hashes = np.concatenate([part.hashes for part in parts])
        return view


def in_memory(parts: Iterator[Prepared]) -> Examples:
    """Collect chunks in memory."""
    report, batches = LoadReport(), []
    for part in parts:
        report.add(part.report)
        batches.append(_record_batch(part))
    return Examples(batches, report)


class DamagedCacheError(Exception):
    """The content of the cache differs from what was written."""


def write_folder(folder: Path, parts: Iterator[Prepared]) -> None:
    """Write chunks one by one: ``examples.arrow`` and ``report.json``."""
    report = LoadReport()
    path = str(folder / _ARROW)
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        for part in parts:
            report.add(part.report)
            writer.write_batch(_record_batch(part))
    note = {"report": report.to_dict(), "crc32": _checksum(folder / _ARROW)}
    (folder / _REPORT).write_text(json.dumps(note, ensure_ascii=False), encoding="utf-8")


def open_folder(folder: Path) -> Examples:
    """Memory-map what `write_folder` wrote.

    Raises:
        DamagedCacheError: a file is missing, or its content differs from what was written.
    """
    try:
        note = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
        if _checksum(folder / _ARROW) != note["crc32"]:
            raise DamagedCacheError(f"the cached rows in {folder} were changed or cut off")
        reader = pa.ipc.open_file(pa.memory_map(str(folder / _ARROW)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        return Examples(batches, LoadReport.from_dict(note["report"]))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DamagedCacheError(
            f"the cached rows in {folder} cannot be read ({type(error).__name__})"
        ) from error


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total

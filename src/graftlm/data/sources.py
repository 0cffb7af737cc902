"""Where rows come from: files, folders, globs, standard input, Hub data sets, Python iterables."""

from __future__ import annotations

import glob
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from graftlm.data.readers import READERS, Raw, read_file, suffix_of
from graftlm.errors import DataError, near_matches

__all__ = ["Data", "Source", "open_source"]

Data = Union[str, Path, Iterable[Any]]  # noqa: UP007 - evaluated on Python 3.10
"""A path, folder, glob, `-`, Hub name, or an iterable of rows."""

_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>[\w\[\]:%+-]+))?")
_NOT_ROWS = {"dataset_info.json", "dataset_dict.json", "state.json"}
_ABOUT = re.compile(
    r"(readme|licen[cs]e|notice|changelog|contributing)\b.*\.(md|txt)", re.IGNORECASE
)
"""Texts about a data set, as its folder often holds; named by themselves, they are rows."""


@dataclass(frozen=True)
class Source:
    """Rows that can be iterated over, with a key where their content can be told beforehand."""

    name: str
    files: tuple[Path, ...] = ()
    rows: Iterable[Any] | None = None

    @property
    def size(self) -> int:
        """Bytes on disk; 0 for rows that are no files."""
        return sum(file.stat().st_size for file in self.files)

    def __iter__(self) -> Iterator[Raw]:
        if self.rows is None:
            for file in self.files:
                yield from read_file(file)
            return
        for number, row in enumerate(self.rows, start=1):
            yield row if isinstance(row, Raw) else Raw(self.name, number, row)

    def content_key(self) -> str:
        """Digest of the files' bytes and names."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self.files:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def open_source(data: Data) -> Source:
    """Find what ``data`` names.

    Raises:
        DataError: nothing is there, or nothing that graftlm reads.
    """
    if not isinstance(data, str | Path):
        if isinstance(data, Mapping) or not isinstance(data, Iterable):
            raise DataError(
                f"found {type(data).__name__} as data, expected a path or an iterable of rows"
            )
        return Source("row", rows=data)
    name = str(data)
    if name == "-":
        return Source("stdin", rows=read_file(Path("stdin.jsonl"), sys.stdin.buffer))
    path = Path(data)
    if path.is_file():
        return Source(name, (path,))
    if path.is_dir():
        return Source(name, _files_in(path))
    if glob.has_magic(name):
        files = tuple(sorted(Path(match) for match in glob.glob(name, recursive=True)))  # noqa: PTH207
        files = tuple(file for file in files if file.is_file())
        if not files:
            raise DataError(f"no file matches {name}; expected at least one data file")
        return Source(name, files)
    hub = _HUB.fullmatch(name)
    if hub and suffix_of(path) not in READERS and not path.parent.is_dir():
        return Source(name, rows=_hub_rows(hub["name"], hub["split"] or "train"))
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    hint = near_matches(path.name, [file.name for file in beside])
    raise DataError(f"data file {path} does not exist; expected a file, folder or glob{hint}")


def _files_in(folder: Path) -> tuple[Path, ...]:
    """All data files below a folder, sorted; hidden ones and a data set's own notes left out."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and suffix_of(file) in READERS
        and file.name not in _NOT_ROWS
        and not _ABOUT.fullmatch(file.name)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise DataError(
            f"the folder {folder} holds no data file; expected one of {', '.join(sorted(READERS))}"
        )
    return tuple(files)


def _hub_rows(name: str, split: str) -> Iterable[Any]:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name} is no file here; to read it as a Hub data set, install the `datasets` package"
        ) from None
    try:
        rows: Iterable[Any] = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises whatever its transport does
        reason = str(error).strip().splitlines()[:1]
        raise DataError(
            f"{name} is no file here, and as a Hub data set (split {split}) it cannot be loaded: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error
    return rows

"""Sources of rows: files, folders, globs, pipes, Hub data sets, Python iterables."""

from __future__ import annotations

import glob
import hashlib
import itertools
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from graftlm.data.folders import Purpose, chosen_files, files_in
from graftlm.data.readers import READERS, Raw, read_file, suffix_of
from graftlm.data.readers.arrow_rows import without_nulls
from graftlm.data.readers.files import read_stream
from graftlm.errors import DataError, near_matches

__all__ = ["Data", "Source", "open_source"]

Data = Union[str, Path, Iterable[Any]]  # noqa: UP007 - evaluated on Python 3.10
"""A path, folder, glob, `-`, Hub name, or an iterable of rows."""

_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>[\w\[\]:%+-]+))?")


@dataclass(frozen=True)
class Source:
    """An iterable of rows; files also have a key of their content.

    Attributes:
        name: the user's name for it.
        files: the files, if any.
        rows: the iterable, if there are no files.
        notes: messages on which files are read and which are not, if there is a choice.
        from_arrow: whether Arrow filled missing keys with null.
    """

    name: str
    files: tuple[Path, ...] = ()
    rows: Iterable[Any] | None = None
    notes: tuple[str, ...] = ()
    from_arrow: bool = False

    @property
    def size(self) -> int:
        """Bytes on disk; 0 for rows that are not in files."""
        return sum(file.stat().st_size for file in self.files)

    def __iter__(self) -> Iterator[Raw]:
        if self.rows is None:
            for file in self.files:
                yield from read_file(file)
            return
        for number, row in enumerate(self.rows, start=1):
            if isinstance(row, Raw):
                yield row
            elif self.from_arrow and isinstance(row, Mapping):
                pruned = {key: without_nulls(value) for key, value in row.items()}
                yield Raw(self.name, number, pruned)
            else:
                yield Raw(self.name, number, row)

    def content_key(self) -> str:
        """Digest of the files' bytes and names."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self.files:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def open_source(data: Data, purpose: Purpose = "train") -> Source:
    """Find what ``data`` names.

    Args:
        data: see `Data`.
        purpose: the use of the rows; decides which split of a folder is read.

    Raises:
        DataError: there is nothing there, or nothing that graftlm can read.
    """
    if not isinstance(data, str | Path):
        return _iterable(data, purpose)
    name = str(data)
    path = Path(data)
    if name in ("-", "/dev/stdin"):
        return Source("stdin", rows=read_stream("stdin", sys.stdin.buffer))
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # too long a name, or one with a null byte
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"cannot open {name[:80]} as data: {reason}") from None
        mode = 0
    if stat.S_ISREG(mode):
        return Source(name, (path,))
    if stat.S_ISDIR(mode):
        files, notes = chosen_files(name, files_in(path), path, purpose)
        return Source(name, files, notes=tuple(notes))
    if mode:
        return _pipe(name, path, mode)
    if glob.has_magic(name):
        matches = sorted(Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207
        files = tuple(match for match in matches if match.is_file())
        if not files:
            raise DataError(f"no file matches {name}; expected at least one data file")
        files, notes = chosen_files(name, files, _folder_of(name), purpose)
        return Source(name, files, notes=tuple(notes))
    hub = _HUB.fullmatch(name)
    if hub and suffix_of(path) not in READERS and not path.parent.is_dir():
        split = hub["split"] or "train"
        note = "" if hub["split"] else f"{name}: reads the split {split} of the Hub data set"
        rows = _hub_rows(hub["name"], split)
        return Source(name, rows=rows, notes=(note,) if note else (), from_arrow=True)
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    hint = near_matches(path.name, [file.name for file in beside])
    raise DataError(f"data file {path} does not exist; expected a file, folder or glob{hint}")


def _folder_of(pattern: str) -> Path:
    """The folder in which a pattern begins to match: the names below it may tell the split."""
    parts = Path(pattern).parts
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), parts)
    return Path(*fixed)


def _pipe(name: str, path: Path, mode: int) -> Source:
    """The pipe of a shell's ``<(…)``; another pipe or device might never end, or never begin."""
    is_ours = path.parent in (Path("/dev/fd"), Path("/proc/self/fd"))
    if not (is_ours and stat.S_ISFIFO(mode)):
        raise DataError(
            f"{name} is a device or a named pipe, expected a file, a folder, - or <(command)"
        )
    return Source(name, rows=read_stream(name, path.open("rb")))


def _iterable(data: Any, purpose: Purpose) -> Source:
    """Rows from Python; from a mapping of splits, the split for the purpose."""
    if isinstance(data, Mapping):
        order = ("train",) if purpose == "train" else ("validation", "test", "train")
        split = next((name for name in order if name in data), None)
        if split is None:
            raise DataError(
                f"found the splits {', '.join(map(str, data))}, expected train among them; "
                "pass one of them"
            )
        others = ", ".join(str(name) for name in data if name != split)
        note = f"data: reads the split {split}; {others or 'no other'} left out"
        return Source("row", rows=data[split], notes=(note,), from_arrow=_of_datasets(data[split]))
    if not isinstance(data, Iterable):
        raise DataError(
            f"found {type(data).__name__} as data, expected a path or an iterable of rows"
        )
    return Source("row", rows=data, from_arrow=_of_datasets(data))


def _of_datasets(rows: Any) -> bool:
    return type(rows).__module__.partition(".")[0] == "datasets"


def _hub_rows(name: str, split: str) -> Iterable[Any]:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name} is no file here; to read it as a Hub data set, install the `datasets` package"
        ) from None
    try:
        rows: Iterable[Any] = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises the errors of its transport
        reason = str(error).strip().splitlines()[:1]
        raise DataError(
            f"{name} is no file here, and as a Hub data set (split {split}) it cannot be loaded: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error
    return rows

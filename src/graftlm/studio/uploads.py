"""The rows that are dropped on the page: received, bounded, and looked into.

A file is written under a hidden name and renamed when it is whole. A compressed one is unpacked
once, into nothing, so that one which unpacks to more than the limit is refused before any command
reads it.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import os
import re
import secrets
import shutil
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from graftlm.errors import ArtifactError, ConfigError, DataError, ResourceError, printable
from graftlm.studio.place import Place

__all__ = ["Upload", "columns_of", "remove_partial", "uploaded", "uploads"]

_SUFFIXES = (
    ".arrow", ".csv", ".feather", ".json", ".jsonl", ".md", ".ndjson", ".parquet", ".tsv", ".txt",
    ".xlsx",
)  # fmt: skip
_COMPRESSED = (".gz", ".bz2", ".zst")
_BLOCK = 1 << 20
_ROWS_LOOKED_AT = 20


class Upload:
    """One file on its way in.

    Args:
        place: the studio's folders.
        name: what the user calls the file.
        limit: the most bytes, packed and unpacked.
        declared: the length that the sender declares, if it does.

    Raises:
        ConfigError: the name is not that of a file of rows.
        ResourceError: the file is too large, or the disk too small.
    """

    def __init__(self, place: Place, name: str, limit: int, declared: int | None = None) -> None:
        self._place, self._limit = place, limit
        self._name = _checked_name(name)
        self._received = 0
        self._require_room(declared or 0)
        self._path = place.uploads / f".{secrets.token_hex(8)}.part"
        self._file: IO[bytes] = self._path.open("xb")

    def write(self, block: bytes) -> None:
        """Take the next bytes."""
        self._require_room(self._received + len(block))
        self._file.write(block)
        self._received += len(block)

    def finish(self) -> str:
        """The file is whole; returns the name under which it is known.

        Raises:
            DataError: it is empty, or an archive that is damaged.
            ResourceError: it unpacks to more than the limit.
        """
        if not self._received:
            raise DataError(f"{self._name} is empty")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        _require_bounded(self._path, self._name, self._limit)
        target = _free_name(self._place.uploads, self._name)
        self._path.rename(target)
        return target.name

    def discard(self) -> None:
        """Remove what was received, unless it has been finished."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _require_room(self, size: int) -> None:
        if size > self._limit:
            raise ResourceError(
                f"{self._name} is larger than {self._limit / 1e9:g} GB, the most that the page "
                "takes; give larger files to `graftlm train --data`"
            )
        free = shutil.disk_usage(self._place.uploads).free
        if size - self._received > free:
            raise ResourceError(
                f"{self._name} needs {size / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free"
            )


def uploads(place: Place) -> list[dict[str, Any]]:
    """Name, bytes and time of each uploaded file, the latest first."""
    found = []
    for entry in os.scandir(place.uploads):
        if entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
            status = entry.stat()
            found.append({"name": entry.name, "bytes": status.st_size, "at": status.st_mtime})
    return sorted(found, key=lambda one: -one["at"])


def uploaded(place: Place, name: str) -> Path:
    """The path of an uploaded file.

    Raises:
        ArtifactError: no uploaded file has this name.
    """
    if name not in (one["name"] for one in uploads(place)):
        raise ArtifactError(f"no file {printable(name)[:100]!r} was uploaded")
    return place.uploads / name


def columns_of(path: Path) -> dict[str, Any]:
    """The columns of the first rows, and the first row itself, for the user to name them.

    The readers are those of `graftlm check`. A file that they refuse has no columns; `check` says
    what is wrong with it.
    """
    from graftlm.data.readers import read_file

    names: dict[str, None] = {}
    first: dict[str, str] = {}
    with contextlib.suppress(DataError):
        for number, raw in enumerate(read_file(path)):
            if number == _ROWS_LOOKED_AT:
                break
            with contextlib.suppress(DataError, ValueError):
                row = raw.parse()
                if isinstance(row, dict):
                    names |= dict.fromkeys(str(name)[:200] for name in list(row)[:100])
                    first = first or {
                        str(k)[:200]: str(v)[:300] for k, v in list(row.items())[:100]
                    }
    return {"columns": list(names), "first": first}


def remove_partial(place: Place) -> None:
    """Remove what a server that was killed had not received whole."""
    for rest in place.uploads.glob(".*.part"):
        rest.unlink(missing_ok=True)


def _checked_name(name: str) -> str:
    plain = unicodedata.normalize("NFC", name)
    bad = plain.startswith(".") or not plain.isprintable() or re.search(r'[/\\:*?"<>|]', plain)
    if bad or not 0 < len(plain.encode()) <= 200:
        raise ConfigError(
            f"the file name {printable(name)[:80]!r} is not plain: rename the file, without "
            'slashes, control characters or any of : * ? " < > |'
        )
    bare = plain.lower()
    for suffix in _COMPRESSED:
        bare = bare.removesuffix(suffix)
    if not bare.endswith(_SUFFIXES):
        raise ConfigError(
            f"{plain}: expected a file of rows, whose name ends with one of {', '.join(_SUFFIXES)}"
            f", or with {', '.join(_COMPRESSED)} after that"
        )
    return plain


def _free_name(folder: Path, name: str) -> Path:
    stem, dot, rest = name.partition(".")
    number = 1
    while (target := folder / (name if number == 1 else f"{stem}-{number}{dot}{rest}")).exists():
        number += 1
    return target


def _require_bounded(path: Path, name: str, limit: int) -> None:
    size = 0
    try:
        for block in _unpacked(path, name.lower()):
            size += len(block)
            if size > limit:
                raise ResourceError(
                    f"{name} unpacks to more than {limit / 1e9:g} GB, the most that the page takes"
                )
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{name} cannot be unpacked: {error}") from error


def _unpacked(path: Path, name: str) -> Iterator[bytes]:
    """The unpacked bytes of a file, in blocks; nothing for one that is not compressed."""
    if name.endswith(".gz"):
        with gzip.open(path) as packed:
            yield from iter(lambda: packed.read(_BLOCK), b"")
    elif name.endswith(".bz2"):
        with bz2.open(path) as packed:
            yield from iter(lambda: packed.read(_BLOCK), b"")
    elif name.endswith(".zst"):
        import pyarrow as pa

        with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
            yield from iter(lambda: stream.read(_BLOCK), b"")
    elif name.endswith(".xlsx"):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as packed:
                    yield from iter(lambda: packed.read(_BLOCK), b"")

"""Writes files atomically, so that a reader never sees an incomplete file.

graftlm writes each file under a temporary name in the target's folder, flushes it to the device,
and renames it. After a crash, or on a full disk, the old file, if there was one, is unchanged.

A folder cannot be replaced by one rename. The old one is first renamed to a hidden name. A process
that is killed between the two renames leaves it there, and `recover` restores it.

A temporary name holds the machine and the process that owns it. What a killed process has left is
removed by the next one that writes into the same folder.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from graftlm.errors import GraftLMError, ResourceError

__all__ = [
    "atomic_folder",
    "atomic_write",
    "disk_errors_named",
    "finite",
    "recover",
    "remove_abandoned",
    "remove_folder",
    "require_free_space",
    "require_writable",
    "sha256_of_files",
    "temporary_folder",
    "write_json",
]


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes ``path``, else it is removed.

    Raises:
        ResourceError: ``path`` is not a plain file, the folder cannot be written to, or the disk
            is full.
    """
    target = Path(path)
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise ResourceError(
            f"{target} is a link, a folder or a device, and writing would replace it. Name a plain "
            "file, or one that does not exist yet."
        )
    with disk_errors_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.{_owner()}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(target)
            _sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it becomes ``path``, else it is removed.

    Args:
        path: the folder to create.
        replace: whether an existing folder may be replaced; it is deleted last.

    Raises:
        ResourceError: the folder exists and is not empty (without ``replace``), cannot be
            written to, or the disk is full.
    """
    target = Path(path)
    if target.exists() and not replace and (not target.is_dir() or any(target.iterdir())):
        raise ResourceError(
            f"{target} already exists and is not an empty folder. "
            "Choose another folder, or remove this one first."
        )
    with disk_errors_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        prefix = f".{target.name}.{_owner()}."
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for file in temporary.rglob("*"):
                file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
                _sync(file)
            if target.exists():
                old = Path(
                    tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old.{_owner()}.")
                )
                target.rename(old / "old")
                try:
                    temporary.rename(target)
                except BaseException:
                    (old / "old").rename(target)
                    raise
                finally:
                    shutil.rmtree(old)
            else:
                temporary.rename(target)
            _sync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder(name: str, place: str | Path | None = None) -> Iterator[Path]:
    """Yield a new folder in ``place``, by default the system's folder for such; then remove it."""
    parent = Path(place or tempfile.gettempdir())
    remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".graftlm-{name}.{_owner()}."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finite(value: Any) -> Any:
    """``value`` with ``None`` for each NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def remove_folder(path: Path) -> None:
    """Delete a folder; a kill leaves either all of it or a hidden remainder."""
    with disk_errors_named(path):
        prefix = f".{path.name}.{_owner()}."
        hidden = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix))
        path.rename(hidden / "removed")
        shutil.rmtree(hidden)


def recover(path: Path) -> None:
    """Repair ``path``, a file or a folder, after a process was killed while it wrote or deleted it.

    If the old folder was renamed and the new one is not in place, the old one is restored. Hidden
    remainders are deleted. No other process may write ``path`` at the same time.
    """
    with disk_errors_named(path):
        for rest in path.parent.glob(f".{glob.escape(path.name)}.*"):
            if not re.fullmatch(
                rf"\.{re.escape(path.name)}\.(old\.)?({OWNER}\.)?\w{{8}}", rest.name
            ):
                continue
            if (rest / "old").exists() and not path.exists():
                (rest / "old").rename(path)
            if rest.is_dir():
                shutil.rmtree(rest)
            else:
                rest.unlink()


OWNER = r"[0-9a-f]{8}-\d+"
"""A machine and a process, in a temporary name."""


@functools.cache
def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _owner() -> str:
    return f"{_machine()}-{os.getpid()}"


def remove_abandoned(folder: Path) -> None:
    """Remove from ``folder`` the temporary files and folders that no living process owns.

    An old folder that waits to be restored is left to `recover`.
    """
    for rest in folder.glob(f".*.{_machine()}-*.*"):
        found = re.fullmatch(rf"\.(.+?)(\.old)?\.{_machine()}-(\d+)\.\w{{8}}", rest.name)
        if found is None or _alive(int(found[3]), rest):
            continue
        if found[2] and not (folder / found[1]).exists():
            continue
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            # In a folder of many users it may be another's; two processes may remove it at once.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                rest.unlink()


def _alive(process: int, made: Path) -> bool:
    """Whether the process that made ``made`` lives; a number may have gone to a later process."""
    import psutil

    try:
        return bool(psutil.Process(process).create_time() <= made.stat().st_mtime + 1)
    except psutil.NoSuchProcess:
        return False
    except (OSError, psutil.Error):
        return True


def write_json(path: str | Path, value: Any, *, sort_keys: bool = False) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity become null."""
    text = json.dumps(finite(value), indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_free_space(folder: str | Path, nbytes: int, what: str) -> None:
    """Raise `ResourceError` unless the disk of ``folder`` has ``nbytes`` free."""
    free = shutil.disk_usage(_nearest_existing(folder)).free
    if free < nbytes:
        raise ResourceError(
            f"{what} needs {nbytes / 1e9:.2f} GB in {folder}, but the disk has {free / 1e9:.2f} GB "
            "free. Free some space or choose another folder."
        )


def require_writable(folder: str | Path) -> None:
    """Raise `ResourceError` unless ``folder`` can be written to, or could be created."""
    with disk_errors_named(Path(folder)), temporary_folder("writable", _nearest_existing(folder)):
        pass


def _nearest_existing(path: str | Path) -> Path:
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    return existing


def sha256_of_files(paths: Iterable[Path]) -> str | None:
    """One hash over the contents of ``paths`` in order; ``None`` when there are none."""
    digest, found = hashlib.sha256(), False
    for path in paths:
        found = True
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if found else None


@contextlib.contextmanager
def disk_errors_named(target: Path) -> Iterator[None]:
    """Turn the system's errors about writing ``target`` into a `ResourceError`."""
    try:
        yield
    except GraftLMError:
        raise
    except Exception as error:
        raise ResourceError(
            f"cannot write {target}: {_reason(error)}. Nothing was changed there; "
            "check the path, its permissions and the free disk space."
        ) from error


def _reason(error: Exception) -> str:
    """The system's message; Rust libraries wrap it in exceptions of their own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    said = re.search(r"([^:]+) \(os error \d+\)", str(error))
    if said is None:
        raise error  # not about the disk
    return said[1].strip()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

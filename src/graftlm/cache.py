"""The cache: `~/.cache/graftlm`, or the folder in the variable `GRAFTLM_CACHE`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from graftlm.errors import ResourceError
from graftlm.files import atomic_folder, remove_abandoned

__all__ = ["cache_folder", "forget", "kept", "once", "said_damaged"]

Value = TypeVar("Value")


def cache_folder() -> Path:
    """The cache's root; it need not exist yet."""
    override = os.environ.get("GRAFTLM_CACHE")
    return Path(override).expanduser() if override else Path.home() / ".cache" / "graftlm"


def once(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The cached folder ``kind/key``, made by ``make(folder)`` if it is not there yet.

    If two processes call it at the same time, one makes the folder and the other waits. An
    interrupted ``make`` leaves nothing that could be mistaken for the result.
    """
    import filelock

    target = cache_folder() / kind / key
    remove_abandoned(target.parent)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.with_name(f"{key}.lock"))
        lock.acquire()
    except OSError as error:
        raise ResourceError(
            f"cannot use the cache {cache_folder()}: {error.strerror or error}. "
            "Set GRAFTLM_CACHE to a folder that can be written to."
        ) from error
    try:
        if not target.is_dir():
            target.unlink(missing_ok=True)  # a file there is not of our making
            with atomic_folder(target) as folder:
                make(folder)
    finally:
        lock.release()
    return target


def kept(kind: str, key: str, make: Callable[[Path], None], read: Callable[[Path], Value]) -> Value:
    """What ``read`` finds in the folder of `once`; a damaged one is made again, and this is said.

    ``read`` raises `OSError`, `ValueError`, `KeyError` or `TypeError` for a damaged folder.
    """
    try:
        return read(once(kind, key, make))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        said_damaged(cache_folder() / kind / key, why)
    forget(kind, key)
    return read(once(kind, key, make))


def said_damaged(folder: Path, why: str) -> None:
    """Say on stderr that a cached folder is made again."""
    print(f"{folder} is damaged ({why}) and is made again", file=sys.stderr)


def forget(kind: str, key: str) -> None:
    """Remove the cached folder ``kind/key``, so that `once` makes it again."""
    place = cache_folder() / kind / key
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)

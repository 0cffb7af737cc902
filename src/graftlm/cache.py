"""The cache: `~/.cache/graftlm`, or the folder in the variable `GRAFTLM_CACHE`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from graftlm.errors import ResourceError
from graftlm.files import atomic_folder, remove_abandoned

__all__ = ["cache_folder", "forget", "once"]


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
            with atomic_folder(target) as folder:
                make(folder)
    finally:
        lock.release()
    return target


def forget(kind: str, key: str) -> None:
    """Remove the cached folder ``kind/key``, so that `once` makes it again."""
    shutil.rmtree(cache_folder() / kind / key, ignore_errors=True)

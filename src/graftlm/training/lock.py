"""One process at a time in a run folder.

The operating system holds the lock (``.lock``) while the process lives, so a killed run leaves no
lock. ``.running`` names the process that holds it, for the error message of the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from graftlm.errors import ResourceError
from graftlm.files import disk_errors_named, remove_abandoned

__all__ = ["OWN_FILES", "locked"]

OWN_FILES = frozenset({".lock", ".running"})
"""The files that this module writes into a run folder."""


@contextlib.contextmanager
def locked(out: Path, here: bool = True) -> Iterator[Path]:
    """Lock the run folder ``out``. Creates it if it is missing; removes it if it stays empty.

    Args:
        out: the folder.
        here: false in a process that leaves this to the main one.

    Raises:
        ResourceError: another process holds the lock, or the folder cannot be created.
    """
    if not here:
        yield out
        return
    import filelock

    if out.exists() and not out.is_dir():
        raise ResourceError(f"{out} exists and is not a folder. Choose another --out.")
    new = _missing(out)
    with disk_errors_named(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / ".lock", timeout=0)
    with disk_errors_named(out):
        try:
            lock.acquire()
        except filelock.Timeout:
            raise ResourceError(
                f"{out} is in use: {_holder(out)} runs there. Wait for it, stop it, or choose "
                "another --out."
            ) from None
    try:
        # A run killed before it wrote config.yaml left only these, and they would bar the next one.
        remove_abandoned(out)
        remove_abandoned(out.parent)
        _say_who(out)
        yield out
    finally:
        try:
            (out / ".running").unlink(missing_ok=True)
            # Before the release: afterwards the file may be the lock of another process.
            _remove_if_empty(out, new)
        finally:
            lock.release()


def _missing(out: Path) -> list[Path]:
    """The folders that do not exist yet, innermost first."""
    return [folder for folder in (out, *out.parents) if not folder.exists()]


def _say_who(out: Path) -> None:
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
    with disk_errors_named(out):
        (out / ".running").write_text(json.dumps(who), encoding="utf-8")


def _holder(out: Path) -> str:
    try:
        who = json.loads((out / ".running").read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} (since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it has not written its name yet


def _remove_if_empty(out: Path, new: list[Path]) -> None:
    """Remove the folders that were created for a run that wrote nothing."""
    if not (out / "config.yaml").exists():
        # Another process may have written a file there; Windows keeps a file that is open.
        with contextlib.suppress(OSError):
            (out / ".lock").unlink(missing_ok=True)
            for folder in new:
                folder.rmdir()

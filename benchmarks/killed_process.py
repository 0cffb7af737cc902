"""A forked process that can be killed just before any of its file-system events."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink"}


def die_before(event: int) -> Callable[[], int]:
    """Let this process be killed just before this file-system event; returns their count so far."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen > event:
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(name: str, arguments: tuple[Any, ...]) -> None:
        if name in CHANGES or (name == "open" and arguments[2] and arguments[2] & WRITING):
            count()

    real = os.fsync

    def flush(descriptor: int) -> None:
        count()
        real(descriptor)

    os.fsync = flush
    sys.addaudithook(audited)
    return lambda: seen


def forked(work: Callable[[Callable[[Any], None]], object], log: Path) -> tuple[int, int]:
    """Start ``work(tell)`` in a fork; returns its number and the pipe of what it tells."""
    inlet, outlet = os.pipe()
    process = os.fork()
    if process:
        os.close(outlet)
        return process, inlet
    code = 1
    try:
        os.close(inlet)
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work(lambda what: os.write(outlet, json.dumps(what).encode() + b"\n"))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int, inlet: int) -> tuple[int, list[Any]]:
    """Wait for a fork: its exit code (negative: the signal) and what it told."""
    with os.fdopen(inlet, "rb") as pipe:
        told = [json.loads(line) for line in pipe.read().splitlines()]
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), told

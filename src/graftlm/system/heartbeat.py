"""Work that may be long says every ten seconds what it is doing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

__all__ = ["heartbeat"]

EVERY = 10.0
"""Seconds between two lines; work that takes less says nothing."""


@contextlib.contextmanager
def heartbeat(say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """While the work goes on, ``say`` gets what the yielded function was last told."""
    latest, over, started = ["starting"], threading.Event(), time.monotonic()

    def beat() -> None:
        while not over.wait(EVERY):
            say(f"{latest[0]} ({time.monotonic() - started:.0f} s)")

    def note(text: str) -> None:
        latest[0] = text

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield note
    finally:
        over.set()
        thread.join()

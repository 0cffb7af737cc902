"""Answers on the terminal: word by word, and stopped by Ctrl-C without ending the program."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.models.decoding.row import Ask, Row
    from graftlm.serve.engine import Writer

__all__ = ["at_once", "stopped_by_interrupt", "written"]


def written(writer: Writer, ask: Ask) -> Iterator[Row]:
    """The row of an answer after each token."""
    row = writer.add(ask)
    try:
        while row.reason is None:
            writer.step()
            if row.error is not None:
                raise row.error
            yield row
    finally:
        writer.cancel(row)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside, Ctrl-C raises `KeyboardInterrupt` each time, as Python has it."""
    with _handler(signal.default_int_handler):
        yield


@contextlib.contextmanager
def stopped_by_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C is remembered; gives the question whether it came. A second one raises.

    A pass of the model is not broken off in the middle, which would leave half a token in its
    cache.
    """
    seen: list[bool] = []

    def remember(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(True)

    with _handler(remember):
        yield lambda: bool(seen)


@contextlib.contextmanager
def _handler(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

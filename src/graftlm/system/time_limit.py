"""Ends work in Python that takes too long, such as a loop in a chat template.

The main thread gets a signal of the system's timer, and its handler raises in the middle of the
work. Another thread, or a system without such timers, gets the exception from a thread that waits
(`PyThreadState_SetAsyncExc`). Either comes between two steps of Python: work inside one call of a
library in C ends only after that call.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["TookTooLongError", "time_limit"]


class TookTooLongError(Exception):
    """The time is over."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TookTooLongError` in the block after ``seconds``; limits are not nested."""
    in_main = threading.current_thread() is threading.main_thread()
    by_signal = in_main and hasattr(signal, "setitimer")
    with _by_signal(seconds) if by_signal else _by_thread(seconds):
        yield


@contextlib.contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    def over(_number: int, _frame: FrameType | None) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _by_thread(seconds: float) -> Iterator[None]:
    worker = threading.get_ident()
    lock = threading.Lock()
    ended = False

    def over() -> None:
        with lock:
            if not ended:
                _raise_in(worker, TookTooLongError)

    timer = threading.Timer(seconds, over)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            ended = True
        _next_steps()  # where one that was sent and has not come yet is raised


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Let a thread raise ``error`` at its next step of Python.

    Sending None would take one back, but Python 3.11 then asks at every step for ever whether there
    is one, and does not end a call that a profiler watches.
    """
    sent = ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), sent)


def _next_steps() -> None:
    """Steps of Python at which a sent exception comes: the start of a call, the end of a round."""
    for _ in range(2):
        pass

"""The end of a command: the message about a failure, and the exit code.

Exit code 0: done; 1: the work failed; 2: the request was wrong. A failure is a few lines on stderr.
``--debug`` shows the traceback instead.

Output that cannot be written is also a failure: a full disk or a closed stdout. A character that
the terminal does not support is printed as its code.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from graftlm.errors import EndedByAnotherRank, GraftLMError, ResourceError

__all__ = ["end_at_second_interrupt", "exit_code_of", "flush", "prepare_streams"]

_DEVICE_OUT_OF_MEMORY = "out of memory"
"""What the libraries of all kinds of accelerators say."""
_OUT_OF_MEMORY = (
    *("can't allocate memory", "bad_alloc", "not enough memory", "Cannot allocate"),
    *("cannot allocate memory", "failed to map segment", "can't start new thread"),
    "thread pool has not been initialized",
)
_PANIC = "PanicException"
_STOPPED = (130, -signal.SIGINT)
"""What the library under the command line exits with after Ctrl-C."""
_SMALLER = (
    "Less would do with `--method qlora`, train.micro_batch_tokens=128, a smaller data.max_length "
    "or train.gradient_checkpointing=true; `graftlm plan` says what fits."
)


class _ClosedStream(io.TextIOBase):
    """Replaces a stream that was closed before the start, for which Python has None."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Raise the error of a write to a closed file."""
        raise OSError(errno.EBADF, f"stdout is closed, and {len(text)} characters were for it")


def prepare_streams() -> None:
    """Make stdout and stderr accept every character; a closed one fails only when it is used."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Messages to a closed stderr are lost, but a successful command must not fail.
            stand_in = _ClosedStream() if name == "stdout" else open(os.devnull, "w")  # noqa: PTH123, SIM115
            setattr(sys, name, stand_in)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def end_at_second_interrupt() -> None:
    """Let Ctrl-C stop the command in order, and a second one end it at once.

    Python would raise again in the middle of the first one's cleaning up, or of a library's import,
    and print the traceback of that.
    """
    seen: list[bool] = []

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        if seen:
            os.write(2, b"error: stopped\n")
            os._exit(1)
        seen.append(True)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupted)


def exit_code_of(work: Callable[[], object], debug: bool) -> int:
    """Do ``work`` and return the exit code; print an error on stderr."""
    try:
        work()
    except SystemExit as end:
        if end.code in _STOPPED:
            return _stopped()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:
        _never_flush()  # the reader of our output ended, such as `| head`
        return 1
    except KeyboardInterrupt:
        return _stopped()
    except Exception as error:
        if debug:
            raise
        return _failure(error)
    except BaseException as error:
        # A library in Rust panics by a class that is no `Exception`.
        if debug or type(error).__name__ != _PANIC:
            raise
        return _failure(error)
    return 0


def flush() -> int:
    """Flush stdout; return the exit code."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _never_flush()
        return _complain(f"the output could not be written: {error.strerror or error}")
    return 0


def _stopped() -> int:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more while Python ends would kill it
    return _complain("stopped")


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out: here, or where a library's error was turned into another."""
    while error is not None:
        said = str(error)
        if isinstance(error, MemoryError) or any(words in said for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _failure(error: BaseException) -> int:
    if isinstance(error, EndedByAnotherRank):
        return error.exit_code
    if _out_of_memory(error) and not isinstance(error, ResourceError):
        return _complain(f"memory ran out. {_SMALLER}")
    if isinstance(error, GraftLMError):
        _complain(str(error))
        return error.exit_code
    said = str(error)
    if isinstance(error, RuntimeError) and _DEVICE_OUT_OF_MEMORY in said.lower():
        return _complain(
            f"the device's memory ran out: {said.splitlines()[0]}\n"
            "Less would do with the base in 4 bits (`--quantize`, or `--method qlora`), or use "
            "`--device cpu`. `graftlm plan` says what fits."
        )
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename is not None else ""
        return _complain(f"{error.strerror or said}{where}")
    return _complain(
        f"unexpected {type(error).__name__}: {said[:500]}\n"
        "This is a fault of graftlm. The same command with --debug shows where; please report it."
    )


def _complain(message: str) -> int:
    lines = message.splitlines() or [""]
    print(f"error: {lines[0]}", file=sys.stderr)
    for line in lines[1:]:
        print(f"       {line}", file=sys.stderr)
    return 1


def _never_flush() -> None:
    """Discard stdout's buffer, so that Python does not flush it at exit."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        sys.stdout = io.StringIO()

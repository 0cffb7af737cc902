"""A child process that ends with its parent, however that one ends.

The parent holds the write end of the child's stdin and never closes it while it waits. The system
closes it when the parent ends, even by SIGKILL. The child waits for that in a thread.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Sequence

__all__ = ["ask", "end_with_parent"]


def ask(command: Sequence[str], request: str) -> tuple[int, str]:
    """Start ``command``, write ``request`` and a newline to it, and wait for its end.

    The command calls `end_with_parent` after it has read the line. It shares our stderr.

    Returns:
        Its exit code and its stdout.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # the exit code says why it ended
            process.stdin.write(f"{request}\n")
            process.stdin.flush()
        said = process.stdout.read()
        process.wait()
    finally:
        process.kill()  # after an interrupt; no effect if it has ended already
        process.wait()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    return process.returncode, said


def _exit() -> None:
    os._exit(1)


def end_with_parent(end: Callable[[], object] = _exit) -> None:
    """In the child: call ``end`` when stdin closes; by default that ends this process at once."""

    def wait() -> None:
        # Not sys.stdin, whose lock would still be held when the interpreter ends.
        while os.read(0, 1 << 16):
            pass
        end()

    threading.Thread(target=wait, daemon=True).start()

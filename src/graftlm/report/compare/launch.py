"""Starts the process of one run and interprets its end."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from graftlm.errors import RequestError, TrainingError

__all__ = ["launch"]

_WORKER = "graftlm.report.compare.worker"


def launch(request: dict[str, Any], name: str) -> None:
    """Do one job (see `worker.do_job`) in a separate process, which shares our stderr.

    Args:
        request: the job.
        name: the name of the run in messages.

    Raises:
        RequestError: the request was wrong: the process ended with exit code 2.
        TrainingError: the work failed, or the process was killed.
        KeyboardInterrupt: the user stopped it; it has written a checkpoint.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said, stopped = "", False
    with _passing_on_termination(process):
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()  # not closed: its end tells the worker that we have ended
        try:
            said = process.stdout.read()
        except KeyboardInterrupt:
            # A terminal's Ctrl-C reaches both processes: the run is writing its checkpoint.
            stopped = True
        process.wait()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    if stopped or process.returncode == -signal.SIGTERM:
        raise KeyboardInterrupt
    _raise_what_went_wrong(process.returncode, said, name)


def _raise_what_went_wrong(code: int, said: str, name: str) -> None:
    if code == 0:
        return
    kept = "The finished runs are kept: the same command goes on from there."
    if code < 0:
        number = signal.Signals(-code)
        memory = ", most likely because memory ran out" if number == signal.SIGKILL else ""
        raise TrainingError(
            f"{name}: the process was ended by {number.name}{memory}. Leave it out (--methods), or "
            f"make it smaller, such as --set train.batch_size=1. {kept}"
        )
    try:
        error = json.loads(said.strip().splitlines()[-1])["error"]
    except (IndexError, KeyError, ValueError):
        raise TrainingError(
            f"{name}: the process failed; its own words are above. {kept}"
        ) from None
    kind = RequestError if code == RequestError.exit_code else TrainingError
    raise kind(f"{name}: {error}")


@contextlib.contextmanager
def _passing_on_termination(process: subprocess.Popen[str]) -> Iterator[None]:
    """Pass SIGTERM on to the run's process, so that it writes its checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        process.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

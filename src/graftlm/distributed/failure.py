"""The error of one process ends all of them, and the user reads it once.

The launcher's store holds what failed:

    failed      how many processes have reported an error
    error/R     the message of rank R
    code/R      its exit code, with which the others end as well
    said        the first to report is about to tell the user

The first to report tells the user, with its rank unless all ranks say the same. A process that
waits for the others in vain learns of it here and ends silently; not before the first has told,
because a launcher ends all processes as soon as one has ended. A thread of each process looks into
the store, since some backends wait forever for a process that is gone.
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from graftlm.errors import ConfigError, EndedByAnotherRank, GraftLMError, TrainingError
from graftlm.system.processes import restarts

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; not imported when the package runs

    from graftlm.system.processes import Processes

__all__ = ["Failures"]

LOOK = 0.5
"""Seconds between two looks into the store."""
GRACE = 5.0
"""Seconds that a process has to end by itself after another one has failed."""
TOGETHER = 1.0
"""Seconds in which the same error of several processes counts as one."""
LOST = ("connection", "peer", "socket", "broken pipe", "gloo", "nccl", "timed out")
"""Words in the errors of a backend whose other side is gone."""


class Failures:
    """Reports the error that leaves the block, and ends this process after another's error.

    Args:
        store: the launcher's store, for this thread.
        second: a second connection to it, for the thread that looks.
        processes: the rank of this process.
    """

    def __init__(self, store: Any, second: Any, processes: Processes) -> None:
        self.store, self.second, self.processes = store, second, processes
        self.over = threading.Event()
        self.looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self.looking.start()
        return self

    def _look(self) -> None:
        while not self.over.wait(LOOK):
            try:
                failed = self.second.add("failed", 0) > 0
            except Exception:  # the launcher is gone, and so is everything that could be told
                failed = True
            if failed and not self.over.wait(GRACE):
                os._exit(1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, SystemExit | GeneratorExit) or _is_exit(error):
            self._stop_looking()
            return
        lost = _connection_lost(error)
        try:
            told = lost and self._another_told()
            if not told:
                self.store.set(f"code/{self.processes.rank}", str(_exit_code(error)))
                self.store.set(f"error/{self.processes.rank}", str(error))
                told = self.store.add("failed", 1) > 1
            if not told:
                same = self._all_say(str(error))
                self.store.set("said", "1")
            code = self._their_code() if told else 1
        except Exception:
            told, same, code = False, True, 1  # no store: say what there is to say
        finally:
            self._stop_looking()
        if told:
            raise EndedByAnotherRank(str(error), code) from error
        if lost:
            raise TrainingError(
                f"rank {self.processes.rank} lost the connection to another of the "
                f"{self.processes.world_size} processes: it was killed, or its machine is gone "
                f"({_first_line(error)}). {_what_now()}"
            ) from error
        if isinstance(error, GraftLMError) and not same:
            raise _of_rank(self.processes.rank, error) from error

    def _stop_looking(self) -> None:
        """End the thread: one that is inside the store when Python ends would abort the process."""
        self.over.set()
        self.looking.join(GRACE)

    def _another_told(self) -> bool:
        """Whether another process reports soon, for one that has lost its connection."""
        end = time.monotonic() + 2 * TOGETHER
        while self.store.add("failed", 0) == 0:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        return True

    def _their_code(self) -> int:
        """The exit code of another process that has reported, when the first has told the user."""
        end = time.monotonic() + 2 * TOGETHER
        while not self.store.check(["said"]) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(LOOK)  # it is printed now
        others = [r for r in range(self.processes.world_size) if r != self.processes.rank]
        keys = [f"code/{rank}" for rank in others]
        return next((int(self.store.get(key)) for key in keys if self.store.check([key])), 1)

    def _all_say(self, message: str) -> bool:
        """Whether all processes report the same within a moment."""
        keys = [f"error/{rank}" for rank in range(self.processes.world_size)]
        end = time.monotonic() + TOGETHER
        while not self.store.check(keys):
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        return all(self.store.get(key).decode() == message for key in keys)


def _what_now() -> str:
    """How the run goes on: torchrun starts the processes again as often as it was told to."""
    done, most = restarts()
    if done < most:
        return "torchrun starts the processes again, from the last checkpoint."
    return "Go on from the last checkpoint with --resume."


def _exit_code(error: BaseException) -> int:
    return error.exit_code if isinstance(error, GraftLMError) else 1


def _of_rank(rank: int, error: GraftLMError) -> GraftLMError:
    """The same error with the rank in front."""
    if isinstance(error, ConfigError):
        return ConfigError([f"rank {rank}: {problem}" for problem in error.problems])
    return type(error)(f"rank {rank}: {error}")


def _is_exit(error: BaseException) -> bool:
    """Whether a command ends on purpose; typer's exit is no `SystemExit`."""
    return type(error).__name__ in ("Exit", "Abort")


def _connection_lost(error: BaseException) -> bool:
    said = str(error).lower()
    return (
        isinstance(error, RuntimeError)
        and not isinstance(error, GraftLMError)
        and any(word in said for word in LOST)
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

"""The processes that train one model. This file is the case of one; `joined.py` is that of several.

All methods are collective: every process calls each of them in the same order. Numbers are added up
in the order of the ranks, so that all processes get the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from graftlm.system.processes import Processes, joined_processes, started_processes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Group", "current_group", "joined"]

ValueT = TypeVar("ValueT")


class Group:
    """A process that is alone."""

    @property
    def processes(self) -> Processes:
        """The rank of this process and the number of all."""
        return joined_processes()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.processes.rank == 0

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The ``values`` of each process, by rank; all give equally many."""
        return [[float(value) for value in values]]

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """The ``tensor`` of each process, by rank; all are of one shape, on the CPU."""
        return [tensor]

    def gather_objects(self, value: ValueT) -> list[ValueT]:
        """The ``value`` of each process, by rank."""
        return [value]

    def from_main(self, make: Callable[[], ValueT]) -> ValueT:
        """What ``make`` returns in the main process. The others do not call it."""
        return make()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does the block before the others, as to fill a cache for them."""
        yield

    def sums(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def most(self, value: float) -> float:
        """The largest ``value`` of any process."""
        return max(found[0] for found in self.gather([value]))


_current = Group()


def current_group() -> Group:
    """The processes that this one has joined; by default it is alone."""
    return _current


def set_current_group(group: Group | None) -> None:
    """Make ``group`` the current one; ``None``: this process alone."""
    global _current
    _current = group or Group()


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """Join the processes that the launcher has started with this one, until the block ends.

    In the block the standard streams of all but the main process lead nowhere. An error of one
    process ends all of them: see `graftlm.distributed.failure`. Without a launcher, and inside
    another `joined`, it does nothing.

    Raises:
        EndedByAnotherRank: another process failed.
    """
    started = started_processes()
    if started.world_size == 1 or _current.processes.world_size > 1:
        yield _current
        return
    from graftlm.distributed.joined import joined_group  # imports torch.distributed

    with joined_group(started) as group:
        yield group

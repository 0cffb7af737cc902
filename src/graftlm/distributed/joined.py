"""The processes that torchrun has started, over torch.distributed.

Numbers go over gloo on the processor, and gradients over the backend of the device: nccl for CUDA
and ROCm, xccl for Intel's GPUs, gloo for the CPU.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from graftlm.distributed.failure import Failures
from graftlm.distributed.group import Group, set_current_group
from graftlm.errors import ResourceError
from graftlm.system.devices import backends_here
from graftlm.system.processes import Processes, set_joined_processes

__all__ = ["JoinedGroup", "joined_group"]

ValueT = TypeVar("ValueT")

PATIENCE = datetime.timedelta(hours=1)
"""How long a process waits for the others, as while one of them tokenises the rows."""


class JoinedGroup(Group):
    """This process and the others of its run."""

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The ``values`` of each process, by rank."""
        own = torch.tensor(list(values), dtype=torch.float64)
        found = [torch.empty_like(own) for _ in range(self.processes.world_size)]
        dist.all_gather(found, own)
        return [tensor.tolist() for tensor in found]

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """The ``tensor`` of each process, by rank."""
        found = [torch.empty_like(tensor) for _ in range(self.processes.world_size)]
        dist.all_gather(found, tensor)
        return found

    def gather_objects(self, value: ValueT) -> list[ValueT]:
        """The ``value`` of each process, by rank."""
        found: list[Any] = [None] * self.processes.world_size
        dist.all_gather_object(found, value)
        return found

    def from_main(self, make: Callable[[], ValueT]) -> ValueT:
        """What ``make`` returns in the main process."""
        made: list[Any] = [make() if self.is_main else None]
        dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
        value: ValueT = made[0]
        return value

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does the block before the others."""
        if not self.is_main:
            self.gather([0])
        yield
        if self.is_main:
            self.gather([0])


@contextlib.contextmanager
def joined_group(processes: Processes) -> Iterator[JoinedGroup]:
    """Join the others, and leave them at the end of the block.

    Raises:
        ResourceError: the others cannot be reached.
        EndedByAnotherRank: another process failed.
    """
    backend = backends_here(processes.local_rank)
    try:
        store, second = _store(processes), _store(processes, serve=False)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),  # type: ignore[attr-defined]
            rank=processes.rank,
            world_size=processes.world_size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ResourceError(
            f"rank {processes.rank} of {processes.world_size} cannot reach the others: {first}. "
            "Start all of them by torchrun, or by `graftlm train --processes N`."
        ) from error
    group = JoinedGroup()
    set_joined_processes(processes)
    set_current_group(group)
    try:
        with Failures(store, second, processes), _silent(processes.rank > 0):
            yield group
    finally:
        set_current_group(None)
        set_joined_processes(Processes())
        dist.destroy_process_group()


def _store(processes: Processes, serve: bool = True) -> Any:
    """The launcher's store of small values; each restart of the processes has its own part."""
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        processes.world_size,
        is_master=serve and processes.rank == 0 and not agents,
        timeout=PATIENCE,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"graftlm/{attempt}", store)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _silent(silent: bool) -> Iterator[None]:
    """Lead the standard streams of this process nowhere."""
    if not silent:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield

"""Which of the processes that train one model this one is. Nothing here imports torch.

PyTorch's launcher (`torchrun`) states it in the environment: RANK, WORLD_SIZE, LOCAL_RANK and
LOCAL_WORLD_SIZE; what it is doing itself is in TORCHELASTIC_…. A process belongs to the others only
after `graftlm.distributed.joined`.
"""

from __future__ import annotations

import dataclasses
import os

__all__ = [
    "Processes",
    "joined_processes",
    "launch_name",
    "restarts",
    "set_joined_processes",
    "started_processes",
]


@dataclasses.dataclass(frozen=True)
class Processes:
    """One process among those that train one model.

    Attributes:
        rank: its number, from 0.
        world_size: how many there are.
        local_rank: its number on this machine.
        local_world_size: how many there are on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


_joined = Processes()


def started_processes() -> Processes:
    """What the launcher of this process says; one process where there was none."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Processes()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_RANK", rank))
    return Processes(rank, world_size, local, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))


def launch_name() -> str | None:
    """A name for the launch that this process belongs to, the same after a restart.

    It is the launcher's own number of the run and its process; ``None`` without torchrun.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run}/{os.getppid()}"


def restarts() -> tuple[int, int]:
    """How often the launcher has started these processes again, and how often it may."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")
    done, most = (int(os.environ.get(name, "0")) for name in counts)
    return done, most


def joined_processes() -> Processes:
    """The processes that this one has joined; by default it is alone."""
    return _joined


def set_joined_processes(processes: Processes) -> None:
    """Say which processes this one belongs to."""
    global _joined
    _joined = processes

"""The placement of a run: its device, the rank of this process and the number of processes.

Outside `kernels/`, only this file distinguishes kinds of devices. All other files use a
`Placement`: to move a batch, to measure memory, to choose how many positions to compute at once,
and to sum a number over all processes.

Today a run is one process. Training starts on the CPU. A model that its user has moved to a GPU
is trained there (`placement_of`).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from graftlm.errors import ConfigError
from graftlm.system import (
    available_memory,
    peak_resident,
    resident,
    trim_heap,
)

__all__ = ["DEVICES", "POSITIONS_AT_ONCE", "Placement", "gpu_name", "placement_for", "placement_of"]

DEVICES = ("cpu", "cuda")
"""The kinds of devices."""
POSITIONS_AT_ONCE = 512
"""Positions of one pass on a CPU: more are not faster, and fewer are slower."""


class Movable(Protocol):
    """Something with a `to(device)` that returns it on that device: a batch, a tensor, a model."""

    def to(self, device: torch.device, /) -> Movable: ...


MovableT = TypeVar("MovableT", bound=Movable)


@dataclasses.dataclass(frozen=True)
class Placement:
    """A device, and the rank of this process among all that train one model.

    Attributes:
        device: the device of the model and its batches. This machine need not have it, because a
            plan may be for another machine.
        rank: the number of this process, from 0.
        world_size: the number of processes that train together. Only 1 is supported.

    Raises:
        ConfigError: more than one process.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if (self.rank, self.world_size) != (0, 1):
            raise ConfigError(
                f"rank {self.rank} of {self.world_size}: training in several processes is not "
                "supported yet. Start graftlm as one process, without torchrun."
            )

    @classmethod
    def on(cls, device: str | torch.device) -> Placement:
        """One process on a device, which this machine need not have."""
        return cls(torch.device(device))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @property
    def runs_on_cpu(self) -> bool:
        """Whether the device is the CPU, so that its memory is that of the process."""
        return self.device.type == "cpu"

    @property
    def exists(self) -> bool:
        """Whether this machine has the device."""
        return self.runs_on_cpu or (self.device.type == "cuda" and torch.cuda.is_available())

    @property
    def rows_end_to_end(self) -> bool:
        """Whether rows laid end to end take no more time than padded ones.

        This is true on a CPU, where our attention skips blocks outside the mask.
        """
        return self.runs_on_cpu

    @property
    def first(self) -> torch.device:
        """The device with its number; without a number it is the first device of its kind."""
        return (
            self.device
            if self.runs_on_cpu
            else torch.device(self.device.type, self.device.index or 0)
        )

    def positions_at_once(self, asked: int | None = None) -> int | None:
        """Maximum positions of one pass; ``None``: a whole batch of any size.

        Args:
            asked: `TrainConfig.micro_batch_tokens`, which has precedence; 0 means whole batches.
        """
        if asked is None and self.runs_on_cpu:
            return POSITIONS_AT_ONCE
        return asked or None

    def move(self, item: MovableT) -> MovableT:
        """``item`` on this device."""
        return item.to(self.device)  # type: ignore[return-value]

    def memory_now(self) -> int:
        """Bytes in use: by the process on a CPU, by tensors on a GPU."""
        return resident() if self.runs_on_cpu else int(torch.cuda.memory_allocated(self.device))

    def peak_memory(self) -> int:
        """Peak of the bytes in use since the process started."""
        if self.runs_on_cpu:
            return peak_resident()
        return int(torch.cuda.max_memory_allocated(self.device))

    def free_memory(self) -> int:
        """Bytes available to new allocations.

        Raises:
            ConfigError: this machine does not have the device.
        """
        if self.runs_on_cpu:
            return available_memory()
        if not self.exists:
            raise ConfigError(
                f"there is no {self.device} here to ask; say what it has, such as --memory 24GB"
            )
        return int(torch.cuda.mem_get_info(self.device)[0])

    def trim_heap(self) -> None:
        """Return the free pages between used blocks; call it between two phases of a step."""
        if self.runs_on_cpu:
            trim_heap()

    def seed(self, seed: int) -> None:
        """Set all of torch's random generators."""
        torch.manual_seed(seed)

    def rng_state(self) -> dict[str, Tensor]:
        """The state of the random generators that a run uses, by device."""
        states = {"cpu": torch.get_rng_state()}
        if not self.runs_on_cpu:
            states["cuda:0"] = torch.cuda.get_rng_state(self.device)
        return states

    def set_rng_state(self, states: dict[str, Tensor]) -> None:
        """Restore the random generators to ``states``, a result of `rng_state`.

        The states of devices that this run does not use are ignored.
        """
        torch.set_rng_state(states["cpu"])
        if not self.runs_on_cpu and "cuda:0" in states:
            torch.cuda.set_rng_state(states["cuda:0"], self.device)

    def sum_over_ranks(self, value: float) -> float:
        """The sum of ``value`` over all processes."""
        return value  # the sum over one process

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of ``parameters`` over all processes, in place."""
        # With one process the gradients are already complete.


def placement_for(request: Literal["auto", "cpu"] = "auto") -> Placement:
    """The placement of a run that starts now.

    Args:
        request: ``auto`` or ``cpu``. Both mean the CPU; ``auto`` also reports an idle GPU, once, on
            stderr.

    Raises:
        ConfigError: any other request.
    """
    if request not in ("auto", "cpu"):
        raise ConfigError(
            f"device {request!r}: expected auto or cpu; graftlm does not train on a GPU yet"
        )
    if request == "auto":
        _report_idle_gpu()
    return Placement(torch.device("cpu"))


def placement_of(model: nn.Module) -> Placement:
    """The placement of a loaded model: the device of its first parameter."""
    return Placement(next(model.parameters()).device)


def gpu_name() -> str | None:
    """The name of this machine's first GPU, or ``None``."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


@functools.cache
def _report_idle_gpu() -> None:
    """Report once that this machine has a GPU that is not used."""
    if (name := gpu_name()) is not None:
        print(
            f"NOTE: this machine has a GPU ({name}), but graftlm trains on the CPU only, for now. "
            "The GPU stays idle.",
            file=sys.stderr,
        )

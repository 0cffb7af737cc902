"""The placement of a run: its device, the rank of this process and the number of processes.

Outside `kernels/`, only this file and `devices.py` distinguish kinds of devices. All other files
use a `Placement`: to move a batch, to measure memory, and to choose how many positions to compute
at once.

The setting `device` names the device of a run (`placement_for`). A model in hand is trained where
it is (`placement_of`). Each of several processes has a device of its own; what they add up, they
add in `graftlm.distributed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from graftlm.errors import ConfigError
from graftlm.system import (
    available_memory,
    peak_resident,
    resident,
    trim_heap,
)
from graftlm.system.devices import (
    accelerators,
    device_name,
    device_named,
    has_bfloat16,
    library_of,
    require_usable,
    say_once,
    unusable_gpu,
)
from graftlm.system.processes import Processes, joined_processes

__all__ = [
    "DEVICES",
    "POSITIONS_AT_ONCE",
    "Placement",
    "candidates",
    "out_of_memory",
    "placement_for",
    "placement_of",
]

DEVICES = ("cpu", "cuda")
"""The kinds of devices that a plan knows."""
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
        world_size: the number of processes that train together.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

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
    def kind(self) -> str:
        """The kind of device, as torch names it: ``cpu``, ``cuda``, ``xpu`` or ``mps``."""
        return self.device.type

    @property
    def exists(self) -> bool:
        """Whether torch can use the device on this machine."""
        return self.runs_on_cpu or self.first in accelerators()

    @property
    def name(self) -> str:
        """The device as a person knows it, such as ``cuda:0 (NVIDIA H100)``."""
        return str(self.device) if self.runs_on_cpu else f"{self.first} ({device_name(self.first)})"

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

    def trains_in(self, dtype: torch.dtype) -> torch.dtype:
        """``dtype``, or float16 instead of bfloat16 on a GPU that does not multiply it, as a T4."""
        narrow = dtype == torch.bfloat16 and not self.runs_on_cpu and self.exists
        return torch.float16 if narrow and not has_bfloat16(self.first) else dtype

    def memory_now(self) -> int:
        """Bytes in use: by the process on a CPU, by tensors on an accelerator."""
        if self.runs_on_cpu:
            return resident()
        library = library_of(self.device)
        asked = getattr(library, "memory_allocated", None)
        return int(library.current_allocated_memory() if asked is None else asked(self.device))

    def peak_memory(self) -> int:
        """Peak of the bytes in use since the process started.

        Apple's library keeps no peak; there it is what the driver has allocated now.
        """
        if self.runs_on_cpu:
            return peak_resident()
        library = library_of(self.device)
        asked = getattr(library, "max_memory_allocated", None)
        return int(library.driver_allocated_memory() if asked is None else asked(self.device))

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
        library = library_of(self.device)
        asked = getattr(library, "mem_get_info", None)
        if asked is None:
            most = library.recommended_max_memory() - library.driver_allocated_memory()
            return min(int(most), available_memory())  # it shares the memory of the processor
        # What torch's allocator holds and does not use is free to torch.
        unused = library.memory_reserved(self.device) - library.memory_allocated(self.device)
        return int(asked(self.device)[0]) + int(unused)

    def trim_heap(self) -> None:
        """Return the free pages between used blocks; call it between two phases of a step."""
        if self.runs_on_cpu:
            trim_heap()

    def seed(self, seed: int) -> None:
        """Set all of torch's random generators."""
        torch.manual_seed(seed)

    def rng_state(self) -> dict[str, Tensor]:
        """The state of the random generators that a run uses: the CPU's and its device's."""
        states = {"cpu": torch.get_rng_state()}
        if not self.runs_on_cpu:
            states[self._rng_key] = library_of(self.device).get_rng_state(self.first)
        return states

    def set_rng_state(self, states: dict[str, Tensor]) -> None:
        """Restore the random generators to ``states``, a result of `rng_state`.

        The states of devices that this run does not use are ignored.
        """
        torch.set_rng_state(states["cpu"])
        if not self.runs_on_cpu and self._rng_key in states:
            library_of(self.device).set_rng_state(states[self._rng_key], self.first)

    @property
    def _rng_key(self) -> str:
        """The name of its generator in a checkpoint: any device of a kind may go on with it."""
        return f"{self.device.type}:0"

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Random numbers from ``seed`` inside this context; afterwards the state is as before."""
        states = self.rng_state()
        try:
            self.seed(seed)
            yield
        finally:
            self.set_rng_state(states)


def placement_for(request: str = "auto", needed: int | None = None) -> Placement:
    """The device that a request means.

    Args:
        request: ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``; or ``auto``: the accelerator
            with the most free memory if it has ``needed`` bytes, else the CPU. ``auto`` reports its
            choice on stderr where there is an accelerator, and a GPU that torch cannot use.
        needed: bytes that must be free for ``auto``; ``None`` does not ask.

    Raises:
        ConfigError: the request names no device, or one that torch cannot use here.
    """
    device, here = device_named(request), joined_processes()
    if device is not None:
        if device.type != "cpu":
            device = _of_this_process(device, here)
            require_usable(device)
        return Placement(device, here.rank, here.world_size)
    for placement in candidates():
        free = placement.free_memory()
        if needed is None or needed <= free:
            say_once(f"device: {placement.name}, which has {free / 1e9:.1f} GB free")
            return placement
        say_once(
            f"device: cpu, since {placement.name} has {free / 1e9:.1f} GB free and "
            f"{needed / 1e9:.1f} GB are needed"
        )
        break
    return Placement(torch.device("cpu"), here.rank, here.world_size)


def _of_this_process(device: torch.device, here: Processes) -> torch.device:
    """The accelerator of this process: several processes on a machine have one each."""
    if here.world_size == 1:
        return device
    if device.type == "mps":
        raise ConfigError(
            "device mps has no way to add numbers up over processes. Train in one process there, "
            "or use device=cpu."
        )
    return torch.device(device.type, here.local_rank)


def candidates() -> list[Placement]:
    """The accelerators that ``device: auto`` may take, the one with the most free memory first.

    Reports a GPU that torch cannot use, once.
    """
    if (why := unusable_gpu()) is not None:
        say_once(f"NOTE: the GPU stays idle: {why}")
    here = joined_processes()
    found = [Placement(device, here.rank, here.world_size) for device in accelerators()]
    if here.world_size > 1:  # each process has its own
        found = found[here.local_rank : here.local_rank + 1]
    return sorted(found, key=lambda placement: -placement.free_memory())


def placement_of(model: nn.Module) -> Placement:
    """The placement of a loaded model: the device of its first parameter.

    A model may have none: OLMo's norms have no weights, and stored weights are buffers.
    """
    here, tensors = joined_processes(), itertools.chain(model.parameters(), model.buffers())
    return Placement(next(tensors).device, here.rank, here.world_size)


def out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator had no memory left. Its library raises no common class."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()

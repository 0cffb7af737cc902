"""A GPU that is not there: what `torch.cuda` would answer, by numbers that a test sets."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from graftlm.system import devices

__all__ = ["FakeGPU", "put_in"]

GIGABYTE = 1_000_000_000


class Queue:
    """A stream of the GPU. What is put into it runs at once; waits are counted."""

    def __init__(self, device: Any = None) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)

    def wait_event(self, event: Any) -> None:
        self.waited.append(event)

    def record_event(self) -> object:
        return object()


@dataclasses.dataclass
class FakeGPU:
    """Some cards of one kind, each with the same memory."""

    free: tuple[int, ...] = (20 * GIGABYTE,)
    capability: tuple[int, int] = (8, 9)
    built_for: tuple[str, ...] = ("sm_75", "sm_80", "sm_90", "compute_90")
    allocated: int = 0
    reserved: int = 0
    states: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    queue: Queue = dataclasses.field(default_factory=Queue)

    def is_available(self) -> bool:
        return bool(self.free)

    def device_count(self) -> int:
        return len(self.free)

    def get_device_name(self, device: torch.device) -> str:
        return f"Card {device.index}"

    def get_device_capability(self, device: torch.device) -> tuple[int, int]:
        return self.capability

    def get_arch_list(self) -> list[str]:
        return list(self.built_for)

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.free[device.index or 0], 2 * self.free[device.index or 0]

    def memory_allocated(self, device: Any = None) -> int:
        return self.allocated

    def memory_reserved(self, device: Any = None) -> int:
        return self.reserved

    def max_memory_allocated(self, device: Any = None) -> int:
        return self.allocated + 1

    def get_rng_state(self, device: torch.device) -> Tensor:
        return self.states.get(device.index or 0, torch.zeros(16, dtype=torch.uint8))

    def set_rng_state(self, state: Tensor, device: torch.device) -> None:
        self.states[device.index or 0] = state

    def current_stream(self, device: Any = None) -> Queue:
        return self.queue


def put_in(patch: pytest.MonkeyPatch, gpu: FakeGPU) -> FakeGPU:
    """Let this machine have ``gpu``, as far as `graftlm.system` asks."""
    for name in ("is_available", "device_count", "get_device_name", "get_device_capability"):
        patch.setattr(f"torch.cuda.{name}", getattr(gpu, name))
    for name in ("get_arch_list", "mem_get_info", "memory_allocated", "memory_reserved"):
        patch.setattr(f"torch.cuda.{name}", getattr(gpu, name))
    for name in ("max_memory_allocated", "get_rng_state", "set_rng_state"):
        patch.setattr(f"torch.cuda.{name}", getattr(gpu, name))
    patch.setattr("torch.cuda.current_stream", gpu.current_stream)
    patch.setattr("torch.cuda.Stream", Queue)
    patch.setattr("torch.cuda.stream", contextlib.nullcontext)
    devices.say_once.cache_clear()
    return gpu

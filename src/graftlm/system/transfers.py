"""Copies from host memory to an accelerator that run beside its computing.

An accelerator computes in one queue and can copy in others. A copy from page-locked (pinned) host
memory runs by itself; from other memory the processor would have to wait. Events order the queues:
a copy waits until all that may read its target is done, and computing waits until its copy arrived.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graftlm.system.devices import library_of

__all__ = ["Transfers"]


class Transfers:
    """The queue for copies to one accelerator.

    Args:
        device: the accelerator, with its number.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._library = library_of(device)
        self._queue: Any = self._library.Stream(device)

    def host_buffer(self, nbytes: int) -> Tensor:
        """Page-locked host memory, (nbytes,) uint8, with arbitrary values."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def start(self, target: Tensor, source: Tensor) -> Any:
        """Copy ``source`` into ``target`` once all computing that was started is done.

        Both must stay alive until the copy has arrived.

        Returns:
            The event of its arrival, for `wait`.
        """
        self._queue.wait_stream(self._library.current_stream(self.device))
        with self._library.stream(self._queue):
            target.copy_(source, non_blocking=True)
            return self._queue.record_event()

    def wait(self, event: Any) -> None:
        """Let the computing that is started from now on wait for a copy."""
        self._library.current_stream(self.device).wait_event(event)

"""Each process holds the whole model; DDP adds up the gradients.

`torch.nn.parallel.DistributedDataParallel` divides the sum of all gradients by the number of
processes. The step multiplies by it, so that the gradient is that of the sum over all processes.

DDP wraps what computes the loss, not the model: an objective may call the model several times. It
sees the trained parameters only. The frozen ones are equal in all processes, or in shares
(`sharded.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from graftlm.distributed.engine import Engine, Loss, Pass

__all__ = ["Replicated"]


class Replicated(Engine):
    """DDP over the trained parameters."""

    def __init__(self) -> None:
        self.divided_by = self.group.processes.world_size

    def prepare(self, model: Any, parameters: Sequence[nn.Parameter]) -> None:
        """Give all processes the parameters of the main one, and wrap them."""
        with torch.no_grad():
            for parameter in parameters:
                dist.broadcast(parameter, src=0)
        self._wrapped = DistributedDataParallel(
            _Computation(model, parameters),
            init_sync=False,
            gradient_as_bucket_view=True,
        )

    def passes(self, batches: Sequence[Any], blank: Callable[[], Any]) -> list[Pass]:
        """At least one: DDP adds up the gradients in the last one."""
        count = max(1, len(batches))
        extra = [blank() for _ in range(count - len(batches))]
        return [
            Pass(batch, place < len(batches), place == count - 1)
            for place, batch in enumerate([*batches, *extra])
        ]

    def loss(self, objective: Loss, model: Any, one: Pass) -> tuple[Tensor, int]:
        """The objective's loss; the last pass of a step goes through DDP."""
        with contextlib.nullcontext() if one.last else self._wrapped.no_sync():
            found: tuple[Tensor, int] = self._wrapped(objective, one)
        return found


class _Computation(nn.Module):
    """What DDP wraps: it owns the trained parameters and knows the model."""

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self._model = (model,)  # in a tuple, so that its frozen parameters are not DDP's

    def forward(self, objective: Loss, one: Pass) -> tuple[Tensor, int]:
        """The loss; zero in a pass that does not count."""
        (model,) = self._model
        loss, count = objective.loss(model, one.batch)
        if not one.counts:
            loss = loss * 0
        if one.last:
            # DDP waits for the gradient of each parameter, also of an expert that no token chose.
            nothing = torch.stack([p.sum().float() for p in self.trained]).sum() * 0
            loss = loss + nothing.to(loss)
        return loss, count

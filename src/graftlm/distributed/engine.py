"""The passes of one optimiser step in one process, and the contract for several.

A pass is one forward and one backward computation of a micro-batch. The step (`training/step.py`)
asks its engine for the passes, computes them, and finds the gradients of all processes added up
after the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from graftlm.distributed.group import Group, current_group

__all__ = ["Engine", "Loss", "Pass"]


class Loss(Protocol):
    """What a step minimises; `graftlm.training.objective.Objective` is one."""

    def loss(self, model: Any, batch: Any, /) -> tuple[Tensor, int]:
        """The loss of ``batch`` as a sum and a count."""


class Pass(NamedTuple):
    """One pass of a step.

    Attributes:
        batch: what the model reads.
        counts: false for a pass that only keeps the other processes company.
        last: whether the gradients are complete after it.
    """

    batch: Any
    counts: bool
    last: bool


class Engine:
    """One process: its gradients are complete as they are.

    Attributes:
        divided_by: the factor by which the engine divides the sum of all gradients.
    """

    divided_by: int = 1

    @property
    def group(self) -> Group:
        """The processes."""
        return current_group()

    def passes(self, batches: Sequence[Any], blank: Callable[[], Any]) -> list[Pass]:
        """The passes of a step.

        Args:
            batches: the micro-batches of this process.
            blank: makes a micro-batch for a process that needs a pass and has no batch left.
        """
        last = len(batches) - 1
        return [Pass(batch, True, place == last) for place, batch in enumerate(batches)]

    def even(self, batches: Sequence[Any], blank: Callable[[], Any]) -> list[Pass]:
        """The passes of an evaluation, without gradients."""
        return [Pass(batch, True, False) for batch in batches]

    def loss(self, objective: Loss, model: Any, one: Pass) -> tuple[Tensor, int]:
        """The objective's loss in this pass: a sum, and its count."""
        return objective.loss(model, one.batch)

    def prepare(self, model: Any, parameters: Sequence[nn.Parameter]) -> None:
        """Get ready to train ``parameters`` of ``model``; called once, before the first step."""

"""The contract of an objective, the function that training minimises, and the registered ones.

An objective defines how rows become batches, what it measures before the first step, and the loss
of a batch as a sum and a count. The step divides by the count over **all** of its batches, so the
update does not depend on how the rows are divided into batches (`training/step.py`).

The setting `train.objective` names a class that is registered here:

    @register_objective
    class MyObjective(Objective):
        name = "mine"
        ...
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from graftlm.config import TrainConfig
from graftlm.data.example import Example
from graftlm.registry import Registry
from graftlm.training.batching import micro_batches

__all__ = ["Objective", "objective_named", "register_objective"]


class Objective(abc.ABC):
    """One way to train.

    A row is one item of the data: an `Example`, or another object with a length in tokens
    (`len(row)`). A batch is an item that `batches` returns: a `Batch`, or another object with an
    integer ``tokens``, the number of tokens that it reads.
    """

    name: ClassVar[str]
    """Its name in `train.objective`."""

    def __init__(self, settings: TrainConfig) -> None:
        self.settings = settings

    def examples_in(self, rows: Sequence[Any]) -> Sequence[Example]:
        """The token sequences of ``rows``.

        They are checked before the run: at least one token must be supervised, and the model's
        vocabulary must contain all tokens.
        """
        return rows

    def measure(self, model: PreTrainedModel, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Values of each row that are needed before the first step, such as reference likelihoods.

        Called once for the training rows and once for the held-out rows, with the model in
        evaluation mode, without gradients. A resumed run reads the stored measurements.

        Returns:
            Tensors by name; the first dimension of each has one entry per row.
        """
        return {}

    def batches(
        self, model: PreTrainedModel, rows: Sequence[Any], measured: Mapping[str, Tensor]
    ) -> list[Any]:
        """The micro-batches of some rows, on the model's device. The step adds their gradients.

        Args:
            model: the model that reads them.
            rows: at least one.
            measured: the entries of these rows in the result of `measure`.
        """
        return list(micro_batches(model, rows, self.settings.micro_batch_tokens))

    @abc.abstractmethod
    def count(self, batch: Any) -> int:
        """The count that `loss` returns for ``batch``, known before its forward pass."""

    @abc.abstractmethod
    def loss(self, model: PreTrainedModel, batch: Any) -> tuple[Tensor, int]:
        """The loss of ``batch``: a differentiable sum (a scalar) and the number of its terms."""


ObjectiveT = TypeVar("ObjectiveT", bound=type[Objective])

_objectives: Registry[type[Objective]] = Registry(
    "objective",
    "graftlm.objectives",
    "register_objective",
    {"next_token": "graftlm.training.next_token"},
)


def register_objective(objective: ObjectiveT) -> ObjectiveT:
    """Register a class of objective under its ``name``; use it as a decorator.

    Raises:
        ConfigError: another class has this name.
    """
    _objectives.add(objective.name, objective)
    return objective


def objective_named(name: str) -> type[Objective]:
    """The class of objective with this name.

    Raises:
        ConfigError: there is none.
    """
    return _objectives.named(name)

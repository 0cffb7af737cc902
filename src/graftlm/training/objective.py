"""What training lowers: the contract of an objective, and the objectives by name.

An objective says how rows become batches, what it must know before the first step, and the loss of
a batch as a sum and a count. The step divides by the count over **all** batches of the step, so
that the update does not depend on how the rows are cut into batches (`training/step.py`).

A class that is registered here is chosen by `train.objective`:

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
from graftlm.errors import ConfigError, near_matches
from graftlm.training.batching import micro_batches

__all__ = ["Objective", "objective_named", "register_objective"]


class Objective(abc.ABC):
    """One way to train.

    A row is what the data holds: an `Example`, or anything else that has a length in tokens
    (`len(row)`). A batch is what `batches` makes of rows: a `Batch`, or anything else with an
    integer ``tokens``, the tokens that it reads.
    """

    name: ClassVar[str]
    """What `train.objective` calls it."""

    def __init__(self, settings: TrainConfig) -> None:
        self.settings = settings

    def examples_in(self, rows: Sequence[Any]) -> Sequence[Example]:
        """The token sequences that ``rows`` are made of.

        They are checked before the run: some token must be learned, and the model must know all.
        """
        return rows

    def measure(self, model: PreTrainedModel, rows: Sequence[Any]) -> dict[str, Tensor]:
        """What must be known of each row before the first step, such as reference probabilities.

        Called once for the training rows and once for the held-out ones, with the model in
        evaluation mode, without gradients. A resumed run reads what its beginning measured.

        Returns:
            Tensors by name; the first dimension of each has one entry a row.
        """
        return {}

    def batches(
        self, model: PreTrainedModel, rows: Sequence[Any], measured: Mapping[str, Tensor]
    ) -> list[Any]:
        """The micro-batches of some rows, on the model's device; their gradients are added.

        Args:
            model: what will read them.
            rows: at least one.
            measured: the entries of these rows in what `measure` returned.
        """
        return list(micro_batches(model, rows, self.settings.micro_batch_tokens))

    @abc.abstractmethod
    def count(self, batch: Any) -> int:
        """The count that `loss` returns for ``batch``, known before its forward pass."""

    @abc.abstractmethod
    def loss(self, model: PreTrainedModel, batch: Any) -> tuple[Tensor, int]:
        """The loss of ``batch``: a differentiable sum (a scalar), and what it is the sum of."""


ObjectiveT = TypeVar("ObjectiveT", bound=type[Objective])

_OBJECTIVES: dict[str, type[Objective]] = {}


def register_objective(objective: ObjectiveT) -> ObjectiveT:
    """Make a class of objective known by its ``name``; for use as a decorator.

    Raises:
        ConfigError: another class has the name.
    """
    known = _OBJECTIVES.setdefault(objective.name, objective)
    if known is not objective:
        raise ConfigError(
            f"the objective {objective.name!r} is {known.__qualname__} already: choose another name"
        )
    return objective


def objective_named(name: str) -> type[Objective]:
    """The class of objective with this name.

    Raises:
        ConfigError: there is none.
    """
    # Registers itself; imported here because it builds on this file.
    import graftlm.training.next_token  # noqa: F401

    if name not in _OBJECTIVES:
        known = ", ".join(sorted(_OBJECTIVES))
        raise ConfigError(
            f"train.objective: there is no {name!r}{near_matches(name, _OBJECTIVES)}. Known are "
            f"{known}; register_objective adds one."
        )
    return _OBJECTIVES[name]

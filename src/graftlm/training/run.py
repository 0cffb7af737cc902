"""A run as data: what is fixed before it starts, and its outcome."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from graftlm.config import ResolvedConfig
from graftlm.data.pack import lengths_of
from graftlm.data.sampler import batches as epoch_batches
from graftlm.distributed.split import batches_of_rank
from graftlm.errors import ArtifactError
from graftlm.system.placement import Placement, placement_of
from graftlm.training.checkpoint import ROW_ORDER
from graftlm.training.objective import Objective
from graftlm.training.resolve import steps_per_epoch

__all__ = ["Run", "RunResult"]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The outcome of a run: `summary.json`, field by field.

    Losses are in nats per supervised token; ``train_loss`` is the mean over the last ten steps.
    ``device`` is where it ran, in ``processes`` processes; the memory is that of the largest one.
    ``adapter`` is the folder of the result, or ``None`` while the run
    is unfinished. The result has the weights after step ``kept_step``: the best evaluation's, or
    the last.
    """

    method: str
    model: str
    device: str
    steps: int
    tokens: int
    supervised_tokens: int
    tokens_per_second: float
    wall_seconds: float
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    train_loss: float | None
    eval_loss_before: float | None
    eval_loss_after: float | None
    adapter: str | None
    finished: bool
    kept_step: int | None
    processes: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that does not change during training.

    Attributes:
        model: the model with its adapters; trainable parameters have ``requires_grad``.
        tokenizer: saved with the result, with the chat template in use.
        examples: the training rows, such as `Example`.
        eval_examples: the held-out rows; may be empty.
        config: the settings.
        objective: the objective of `train.objective`.
        out: the run folder.
        total_parameters: as `graftlm.add_lora` counts them (a 4-bit weight counts as one).
    """

    model: PreTrainedModel
    tokenizer: Any
    examples: Sequence[Any]
    eval_examples: Sequence[Any]
    config: ResolvedConfig
    objective: Objective
    out: Path
    total_parameters: int
    _orders: dict[int, list[list[int]]] = dataclasses.field(default_factory=dict, init=False)
    """The order of the rows in the last two epochs asked for."""

    @property
    def placement(self) -> Placement:
        """The device and rank of the model."""
        return placement_of(self.model)

    @property
    def total_steps(self) -> int:
        """Optimiser steps in the whole run."""
        return self.config.train.steps

    def micro_batches(self, step: int, measured: Mapping[str, Tensor]) -> list[Any]:
        """The passes of optimiser step ``step`` (from 0): a pure function of the settings.

        Of several processes each gets those of its own rows, none if there are too few rows.

        Args:
            step: its number.
            measured: the objective's measurements of ``examples``.
        """
        here = self.placement
        lengths = lengths_of(self.examples)
        own = batches_of_rank(self._batches(step), lengths, here.rank, here.world_size)
        return [batch for chosen in own for batch in self._made(chosen, measured)]

    def blank(self, step: int, measured: Mapping[str, Tensor]) -> Any:
        """A micro-batch of the shortest row of the step, for a pass that does not count."""
        rows = [row for chosen in self._batches(step) for row in chosen]
        shortest = min(rows, key=lambda row: len(self.examples[row]))
        return self._made([shortest], measured)[0]

    def _made(self, chosen: list[int], measured: Mapping[str, Tensor]) -> list[Any]:
        rows = [self.examples[row] for row in chosen]
        known = {name: values[chosen] for name, values in measured.items()}
        return self.objective.batches(self.model, rows, known)

    def _batches(self, step: int) -> list[list[int]]:
        """The row numbers of each batch of a step."""
        count = self.config.train.gradient_accumulation_steps
        epoch, place = divmod(step, steps_per_epoch(self._batches_per_epoch, count))
        return self._order(epoch)[place * count : (place + 1) * count]

    def rows_of(self, steps: int) -> set[int]:
        """The indices of the rows that the first ``steps`` steps read."""
        count = self.config.train.gradient_accumulation_steps
        each = steps_per_epoch(self._batches_per_epoch, count)
        rows: set[int] = set()
        for step in range(steps):
            epoch, place = divmod(step, each)
            for chosen in self._order(epoch)[place * count : (place + 1) * count]:
                rows |= set(chosen)
        return rows

    def require_same_order(self, row_order: int, step: int) -> None:
        """Check that the rows after ``step`` come in the order that the run began with.

        Args:
            row_order: the version of the order, from the checkpoint. In version 1 a step went on
                with rows of the next pass.
            step: the steps done.

        Raises:
            ArtifactError: the order has changed since.
        """
        count, batches = self.config.train.gradient_accumulation_steps, self._batches_per_epoch
        crosses = batches % count != 0 and self.total_steps * count > batches
        if row_order < ROW_ORDER and crosses:
            raise ArtifactError(
                f"{self.out} was begun by an older graftlm, whose accumulation of {count} batches "
                f"went on over the end of a pass ({batches} batches). From step {step} on its rows "
                "would come in another order. Begin the run again, or finish it with that version."
            )

    @property
    def _batches_per_epoch(self) -> int:
        return math.ceil(len(self.examples) / self.config.train.batch_size)

    def _order(self, epoch: int) -> list[list[int]]:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            settings = self.config.train
            self._orders[epoch] = epoch_batches(
                lengths_of(self.examples),
                settings.batch_size,
                settings.seed,
                epoch,
                group_by_length=self.config.data.group_by_length,
            )
        return self._orders[epoch]

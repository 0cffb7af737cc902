"""A run as data: what is fixed before it starts, and what it leaves."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from graftlm.config import ResolvedConfig
from graftlm.data.pack import lengths_of
from graftlm.data.sampler import batches as epoch_batches
from graftlm.system.placement import Placement, placement_of
from graftlm.training.objective import Objective, objective_named

__all__ = ["Run", "RunResult", "recompute_activations"]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The outcome of a run: `summary.json`, field by field.

    Losses are in nats per supervised token; ``train_loss`` is the mean over the last ten steps.
    ``adapter`` is the folder of the result, or ``None`` while the run is unfinished. The result has
    the weights after step ``kept_step``: the best evaluation's, or the last.
    """

    method: str
    model: str
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


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """All that is fixed once training starts.

    Attributes:
        model: with its adapters in place; what is trained has ``requires_grad``.
        tokenizer: saved beside the result, with the chat template in force.
        examples: the rows to train on, such as `Example`.
        eval_examples: the rows to measure on; may be empty.
        config: the settings.
        out: the run folder.
        total_parameters: as `graftlm.add_lora` counts them (a 4-bit weight counts as one).
    """

    model: PreTrainedModel
    tokenizer: Any
    examples: Sequence[Any]
    eval_examples: Sequence[Any]
    config: ResolvedConfig
    out: Path
    total_parameters: int

    @property
    def placement(self) -> Placement:
        """Where the model is."""
        return placement_of(self.model)

    @functools.cached_property
    def objective(self) -> Objective:
        """What is trained for."""
        return objective_named(self.config.train.objective)(self.config.train)

    @property
    def total_steps(self) -> int:
        """Optimiser steps in the whole run."""
        return self.config.train.steps

    def micro_batches(self, step: int, measured: Mapping[str, Tensor]) -> list[Any]:
        """The passes of optimiser step ``step`` (from 0): a pure function of the settings.

        Args:
            step: its number.
            measured: what the objective measured of ``examples``.
        """
        settings = self.config.train
        count = settings.gradient_accumulation_steps
        per_epoch = math.ceil(len(self.examples) / settings.batch_size)
        batches: list[Any] = []
        for i in range(step * count, (step + 1) * count):
            chosen = self._order(i // per_epoch)[i % per_epoch]
            rows = [self.examples[row] for row in chosen]
            known = {name: values[chosen] for name, values in measured.items()}
            batches += self.objective.batches(self.model, rows, known)
        return batches

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a run lives as long as its process
    def _order(self, epoch: int) -> list[list[int]]:
        lengths = lengths_of(self.examples)
        settings = self.config.train
        return epoch_batches(
            lengths,
            settings.batch_size,
            settings.seed,
            epoch,
            group_by_length=self.config.data.group_by_length,
        )


def recompute_activations(model: Any) -> None:
    """Keep each layer's input only, and compute its activations again when they are needed.

    Switches gradient checkpointing on for a transformers model, in place. It is the non-reentrant
    kind, which works although the first layer's input needs no gradient.
    """
    # transformers 5.23 renamed the switch.
    enable = getattr(model, "activation_checkpointing_enable", None)
    enable = enable or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})

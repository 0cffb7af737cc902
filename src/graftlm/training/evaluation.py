"""The held-out loss: the objective's summed loss divided by its count, without gradients.

For the next-token objective this is the mean negative log-likelihood per supervised token, in nats.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from graftlm.config import TrainConfig
from graftlm.data.batch import Example
from graftlm.distributed.engine import Engine
from graftlm.errors import DataError
from graftlm.models.probing import being_probed
from graftlm.training.next_token import NextToken
from graftlm.training.objective import Objective

__all__ = ["EvalResult", "evaluate", "mean_loss"]


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The result of a measurement on rows.

    Attributes:
        loss: mean over supervised tokens, in nats.
        perplexity: ``exp(loss)``.
        rows: rows measured.
        supervised_tokens: tokens whose prediction was measured.
    """

    loss: float
    perplexity: float
    rows: int
    supervised_tokens: int


def evaluate(
    model: PreTrainedModel,
    examples: Sequence[Example],
    batch_size: int = 8,
    micro_batch_tokens: int | None = None,
) -> EvalResult:
    """Measure how well ``model`` predicts the supervised tokens of ``examples``.

    The model is put into evaluation mode for the measurement; its mode is restored afterwards.

    Args:
        model: a causal language model.
        examples: at least one, with at least one supervised token among them.
        batch_size: rows at a time.
        micro_batch_tokens: maximum positions at a time, as in training.

    Raises:
        DataError: there is nothing to measure.
    """
    objective = NextToken(TrainConfig(micro_batch_tokens=micro_batch_tokens))
    mean, tokens = mean_loss(objective, model, examples, batch_size)
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return EvalResult(mean, perplexity, len(examples), tokens)


def mean_loss(
    objective: Objective,
    model: PreTrainedModel,
    rows: Sequence[Any],
    batch_size: int,
    measured: Mapping[str, Tensor] | None = None,
    engine: Engine | None = None,
) -> tuple[float, int]:
    """The mean loss over ``rows``, and the count that the sum was divided by.

    Rows of similar length share a batch, which saves padding. Of several processes each measures
    some of the batches, and all return the same.

    Args:
        objective: computes the loss.
        model: is put into evaluation mode for the measurement; its mode is restored afterwards.
        rows: at least one.
        batch_size: rows at a time.
        measured: the objective's measurements of ``rows`` from before the run.
        engine: adds up over the processes; by default there is one.

    Raises:
        DataError: there is nothing to measure.
    """
    if not len(rows):
        raise DataError("there are no rows to evaluate on. Give a file with at least one row.")
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    engine = engine or Engine()
    here, loss_sum, count = engine.group.processes, 0.0, 0

    def made(part: list[int]) -> list[Any]:
        known = {name: values[part] for name, values in (measured or {}).items()}
        return objective.batches(model, [rows[index] for index in part], known)

    with being_probed(model):
        for start in range(0, len(order), batch_size * here.world_size):
            own = start + batch_size * here.rank
            part = order[own : own + batch_size]
            batches = [b for b in made(part) if objective.count(b)] if part else []
            for one in engine.even(batches, lambda: made(order[-1:])[0]):
                loss, counted = objective.loss(model, one.batch)
                if one.counts:
                    loss_sum += float(loss)
                    count += counted
    loss_sum, total = engine.group.sums(loss_sum, count)
    count = int(total)
    if not count:
        raise DataError(
            "no row has a supervised token, so there is nothing to evaluate. "
            "Check that the rows have answers and that data.max_length does not cut them off."
        )
    return loss_sum / count, count

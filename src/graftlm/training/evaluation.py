"""The held-out loss: mean negative log-likelihood per supervised token, in nats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from graftlm.data.batch import Example
from graftlm.errors import DataError
from graftlm.training.batching import micro_batches
from graftlm.training.loss import causal_lm_loss

__all__ = ["EvalResult", "evaluate"]

NO_GRADIENT = 1e-6
"""A tolerance for the gradient, of which there is none: the loss is complete at any, and quick."""


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """A model measured on rows.

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
    """Measure ``model`` on ``examples``; rows of like length go together to save padding.

    The model is put into evaluation mode and returned to the mode it had.

    Args:
        model: a causal language model.
        examples: at least one, with at least one supervised token among them.
        batch_size: rows at a time.
        micro_batch_tokens: positions at a time, at most, as in training.
    """
    if not examples:
        raise DataError("there are no rows to evaluate on. Give a file with at least one row.")
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].input_ids))
    was_training, loss_sum, tokens = model.training, 0.0, 0
    model.train(False)
    try:
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                rows = [examples[index] for index in order[start : start + batch_size]]
                for batch in micro_batches(model, rows, micro_batch_tokens):
                    if batch.supervised_tokens:
                        loss_sum += float(causal_lm_loss(model, batch, NO_GRADIENT))
                        tokens += batch.supervised_tokens
    finally:
        model.train(was_training)
    if not tokens:
        raise DataError(
            "no row has a supervised token, so there is nothing to evaluate. "
            "Check that the rows have answers and that data.max_length does not cut them off."
        )
    mean = loss_sum / tokens
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return EvalResult(mean, perplexity, len(examples), tokens)

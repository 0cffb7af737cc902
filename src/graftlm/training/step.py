"""One optimiser step: forward and backward over its micro-batches, clip, update.

The gradient of a step is that of the mean loss over **all supervised tokens of the step**,

    g = ∇ Σ_b Σ_t ℓ_bt / N,     N = number of supervised tokens in all micro-batches,

so that 8 micro-batches of one row and one micro-batch of 8 rows give the same update, even if the
rows differ in length. The objective defines the sum and the count (here: the next-token loss). It
knows `N` before the first forward pass. `b` runs over the micro-batches of all processes: each
computes some of them, and the engine adds the gradients up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from graftlm.distributed.engine import Engine
from graftlm.errors import TrainingError
from graftlm.system.placement import placement_of
from graftlm.training.objective import Objective

__all__ = ["Interrupted", "StepResult", "train_step"]


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """Raised between two micro-batches when the user asked to stop; nothing was updated."""


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one optimiser step did.

    Attributes:
        loss: mean loss before the update (next tokens: in nats per supervised token).
        grad_norm: global L2 norm of the gradient before clipping.
        tokens: real (unpadded) tokens read.
        supervised_tokens: the count that the loss was divided by.
    """

    loss: float
    grad_norm: float
    tokens: int
    supervised_tokens: int


def train_step(
    model: PreTrainedModel,
    batches: Sequence[Any],
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    max_grad_norm: float,
    objective: Objective,
    stop_requested: Callable[[], bool] = lambda: False,
    engine: Engine | None = None,
    blank: Callable[[], Any] = lambda: None,
) -> StepResult:
    """Train one step on ``batches``, the micro-batches whose gradients are summed.

    Args:
        model: in training mode.
        batches: those of this process; at least one if it is alone.
        optimizer: the optimiser of ``parameters``.
        parameters: the trainable parameters.
        max_grad_norm: gradients with a larger global norm are scaled down to it.
        objective: computes the loss of a batch.
        stop_requested: called between micro-batches.
        engine: adds up over the processes; by default there is one.
        blank: makes a micro-batch that does not count, for an engine that needs one.

    Raises:
        TrainingError: the loss or the gradient is not finite, or the batches have nothing to
            learn; the weights are unchanged.
        Interrupted: ``stop_requested()`` was true; the weights are unchanged.
    """
    placement, engine = placement_of(model), engine or Engine()
    counts = [objective.count(batch) for batch in batches]
    total, tokens = engine.group.sums(sum(counts), sum(batch.tokens for batch in batches))
    if not total:
        raise TrainingError(
            f"the rows of this step have nothing to learn: the objective {objective.name!r} counts "
            f"0 in their {int(tokens)} tokens, expected at least 1. "
            "Leave out the rows without a supervised token, or raise train.batch_size. The weights "
            "are as they were before this step."
        )
    losses: list[Tensor] = []
    # The slope of a position under the mean loss is too small for float16; under the sum it is not.
    narrow = any(p.dtype == torch.float16 for p in model.parameters())
    divisor = (1 if narrow else total) / engine.divided_by
    optimizer.zero_grad(set_to_none=True)
    for place, one in enumerate(engine.passes(batches, blank)):
        if stop_requested():
            optimizer.zero_grad(set_to_none=True)
            raise Interrupted
        placement.trim_heap()  # return what the last backward pass freed
        loss, counted = engine.loss(objective, model, one)
        if one.counts and counted != (count := counts[place]):
            raise TrainingError(
                f"the objective {objective.name!r} announced a count of {count} for a batch and "
                f"then summed over {counted}: the step would be scaled wrongly. Let `count` return "
                "what `loss` returns."
            )
        if one.counts:
            losses.append(loss.detach())
        (loss / divisor).backward()  # type: ignore[no-untyped-call]
    if narrow:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(total)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    # On an accelerator this waits for all work of the step: once, and not for each number.
    *values, grad_norm = torch.stack([*losses, norm.to(loss.detach())]).tolist()
    for batch, count, value in zip(batches, counts, values, strict=True):
        if not math.isfinite(value):
            raise TrainingError(_diagnose_loss(model, batch, count, value))
    (loss_sum,) = engine.group.sums(sum(values))  # a rank whose loss is not finite has stopped
    _require_finite(grad_norm)
    optimizer.step()
    return StepResult(loss_sum / total, grad_norm, int(tokens), int(total))


def _require_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise TrainingError(
            f"the gradient is not finite (norm {norm}) although the loss is. The weights are as "
            "they were before this step. Lower train.learning_rate, or use model.dtype=float32."
        )


def _diagnose_loss(model: PreTrainedModel, batch: Any, count: int, value: float) -> str:
    """Say where the non-finite number comes from: the weights, or the activations."""
    bad = [name for name, p in model.named_parameters() if not _all_finite(p)]
    if bad:
        cause = f"{len(bad)} parameters hold NaN or Inf already, first {bad[0]!r}"
        remedy = "Check the checkpoint; if training made them so, lower train.learning_rate."
    else:
        cause = "all weights are finite, so an activation overflowed"
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
        remedy = (
            f"Weights are {', '.join(dtypes)}; try model.dtype=float32 or a lower learning rate."
        )
    return (
        f"the loss is {value} on a batch of {batch.tokens} tokens ({count} in the loss): "
        f"{cause}. {remedy} "
        "The weights are as they were before this step."
    )


def _all_finite(tensor: Any) -> bool:
    if hasattr(tensor, "to_local"):  # a share; the others may not be asked now
        tensor = tensor.to_local()
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())

"""Compares models that run from the disk, on the same rows.

    loss       mean of -log p(token) over the supervised tokens
    kl         mean of KL(live ‖ model) = Σ_v p_live(v) · (log p_live(v) - log p_model(v))
    agreement  share of the positions where both find the same token most likely
    layers     ‖h_model - h_live‖ / ‖h_live‖ after each decoder layer
    kept       share of the tune's improvement over its base that the model keeps:
                   (loss_base - loss_model) / (loss_base - loss_live)
               on rows where the tune improves the loss; elsewhere, from the distributions,
                   1 - kl(model) / kl(base)

The positions are those that predict a supervised token. Logits of all of them do not fit in memory,
so the hidden states are kept, and multiplied by the output layer a few positions at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graftlm.data.batch import IGNORED, collate
from graftlm.data.example import Example
from graftlm.errors import DataError
from graftlm.models.streamed import StreamedModel

__all__ = ["Comparison", "Passed", "compare_passes", "kept_share", "pass_over"]

POSITIONS_A_PASS = 4096
LOGITS_BYTES = 128 << 20
KL_POSITIONS = 512
"""KL and agreement are found on so many positions, evenly spread."""
SMALLEST_IMPROVEMENT = 0.01
"""In nats; below it the loss does not tell how much of a tune is there."""


@dataclasses.dataclass(frozen=True, eq=False)
class Passed:
    """A model's pass over rows.

    Attributes:
        model: the model, for its output layer.
        hidden: (N, D), at the positions that predict a supervised token.
        targets: (N,), those tokens.
        layers: for each decoder layer, its output (M, D) at the positions of the first rows.
    """

    model: StreamedModel
    hidden: Tensor
    targets: Tensor
    layers: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model beside the live one; see the file's docstring."""

    loss: float
    kl: float
    agreement: float
    layers: dict[str, float]


def pass_over(model: StreamedModel, rows: Sequence[Example], pad_id: int | None) -> Passed:
    """Run ``model`` over ``rows``, similar lengths together.

    Raises:
        DataError: no token of the rows is supervised.
    """
    hidden: list[Tensor] = []
    targets: list[Tensor] = []
    layers: dict[str, Tensor] = {}
    for group in _groups(rows):
        batch = collate(group, pad_id)
        states, outputs = model.run(batch.input_ids, batch.attention_mask, keep_layers=not hidden)
        learned = batch.labels[:, 1:] != IGNORED
        hidden.append(states[:, :-1][learned])
        targets.append(batch.labels[:, 1:][learned])
        mask = batch.attention_mask
        for name, output in outputs.items():
            layers[name] = output[:4][mask[:4]] if mask is not None else output[:4].flatten(0, 1)
    if not sum(map(len, targets)):
        raise DataError("no token of these rows is supervised, so there is nothing to compare on")
    return Passed(model, torch.cat(hidden), torch.cat(targets), layers)


@torch.no_grad()
def compare_passes(live: Passed, other: Passed) -> Comparison:
    """Compare ``other`` with ``live``; both passed over the same rows."""
    loss = kl = 0.0
    agreed, count = 0, len(live.targets)
    for part in _parts(live, torch.arange(count)):
        logits = other.model.logits(other.hidden[part])
        loss += float(F.cross_entropy(logits, live.targets[part], reduction="sum"))
    spread = torch.arange(0, count, -(-count // KL_POSITIONS))
    for part in _parts(live, spread):
        reference = live.model.logits(live.hidden[part])
        logits = reference if other is live else other.model.logits(other.hidden[part])
        log_p, log_q = reference.log_softmax(-1), logits.log_softmax(-1)
        kl += float(F.kl_div(log_q, log_p, reduction="sum", log_target=True))
        agreed += int((reference.argmax(-1) == logits.argmax(-1)).sum())
    layers = {
        name: float((other.layers[name] - output).norm() / output.norm())
        for name, output in live.layers.items()
    }
    return Comparison(loss / count, kl / len(spread), agreed / len(spread), layers)


def kept_share(base: Comparison, live: Comparison, other: Comparison) -> tuple[float, str]:
    """``kept`` and what it was found from: ``loss`` or ``distributions``.

    It is 1 if the adapter has no effect on these rows.
    """
    improvement = base.loss - live.loss
    if improvement > SMALLEST_IMPROVEMENT:
        return (base.loss - other.loss) / improvement, "loss"
    return (1.0 - other.kl / base.kl if base.kl > 0 else 1.0), "distributions"


def _groups(rows: Sequence[Example]) -> Iterator[list[Example]]:
    """Rows of similar length, at most `POSITIONS_A_PASS` positions together."""
    group: list[Example] = []
    for row in sorted(rows, key=len, reverse=True):
        if group and (len(group) + 1) * len(group[0]) > POSITIONS_A_PASS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _parts(passed: Passed, positions: Tensor) -> Iterator[Tensor]:
    """``positions``, as many at a time as their logits may take memory."""
    vocabulary = int(passed.model.model.config.get_text_config().vocab_size)
    yield from torch.split(positions, max(1, LOGITS_BYTES // (4 * vocabulary)))

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
so the hidden states are kept, and multiplied by the output layer for some tokens of the vocabulary
at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from graftlm.data.batch import IGNORED, collate
from graftlm.data.example import Example
from graftlm.errors import DataError
from graftlm.models.streamed import VOCABULARY_ROWS, StreamedModel

__all__ = ["Comparison", "Passed", "compare_passes", "kept_share", "pass_over"]

POSITIONS_A_PASS = 512
LOGITS_BYTES, ADAPTED_BYTES = 8 << 20, 128 << 20
"""Of an adapted output layer more at once: each time it is read and widened as a whole."""
LAYER_POSITIONS = 64
"""The outputs of the layers are compared at so many positions of the longest rows."""
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
        layers: for each decoder layer, its output (M, D) at some positions of the longest rows.
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
        places = None if hidden else _some_positions(batch.input_ids, batch.attention_mask)
        states, outputs = model.run(batch.input_ids, batch.attention_mask, keep_layers=places)
        learned = batch.labels[:, 1:] != IGNORED
        hidden.append(states[:, :-1][learned])
        targets.append(batch.labels[:, 1:][learned])
        layers |= outputs
    if not sum(map(len, targets)):
        raise DataError("no token of these rows is supervised, so there is nothing to compare on")
    return Passed(model, torch.cat(hidden), torch.cat(targets), layers)


@torch.no_grad()
def compare_passes(live: Passed, other: Passed) -> Comparison:
    """Compare ``other`` with ``live``; both passed over the same rows."""
    count = len(live.targets)
    loss = sum(_loss(other, part) for part in _parts(other, torch.arange(count)))
    spread = torch.arange(0, count, -(-count // KL_POSITIONS))
    found = [_divergence(live, other, part) for part in _parts(live, spread)]
    kl, agreed = (sum(column) / len(spread) for column in zip(*found, strict=True))
    layers = {
        name: float((other.layers[name] - output).norm() / output.norm())
        for name, output in live.layers.items()
    }
    return Comparison(loss / count, kl, agreed, layers)


def _some_positions(ids: Tensor, mask: Tensor | None) -> Tensor:
    """`LAYER_POSITIONS` positions of ``ids`` that are no padding, evenly spread."""
    real = torch.arange(ids.numel()) if mask is None else torch.nonzero(mask.flatten())[:, 0]
    return real[:: -(-len(real) // LAYER_POSITIONS)]


def _loss(passed: Passed, positions: Tensor) -> float:
    """The sum of -log p(target), some tokens of the vocabulary at a time."""
    targets, start = passed.targets[positions], 0
    whole, picked = _nothing(positions), torch.zeros(len(positions), dtype=torch.float64)
    for logits in passed.model.logits_in_parts(passed.hidden[positions]):
        whole = torch.logaddexp(whole, _log_sum(logits))
        here = torch.nonzero((targets >= start) & (targets < start + logits.shape[-1])).view(-1)
        picked[here] = logits[here, targets[here] - start].double()
        start += logits.shape[-1]
    return float((whole - picked).sum())


def _divergence(live: Passed, other: Passed, positions: Tensor) -> tuple[float, int]:
    """The sums of KL(live ‖ other) = E_live[z_live - z_other] - (log Z_live - log Z_other), and of
    agreement, over ``positions``, some tokens of the vocabulary at a time.
    """
    of_live, of_other = _nothing(positions), _nothing(positions)
    mean = torch.zeros(len(positions), dtype=torch.float64)
    best = [(_nothing(positions), torch.zeros(len(positions), dtype=torch.int64))] * 2
    start = 0
    for z, z_other in zip(
        live.model.logits_in_parts(live.hidden[positions]),
        other.model.logits_in_parts(other.hidden[positions]),
        strict=True,
    ):
        before, of_live = of_live, torch.logaddexp(of_live, _log_sum(z))
        of_other = torch.logaddexp(of_other, _log_sum(z_other))
        p = torch.exp(z - of_live[:, None].float())
        mean = mean * torch.exp(before - of_live) + (p * (z - z_other)).sum(-1).double()
        best = [_better(*one, z, start) for one, z in zip(best, (z, z_other), strict=True)]
        start += z.shape[-1]
    kl = (mean - (of_live - of_other)).clamp(min=0)
    return float(kl.sum()), int((best[0][1] == best[1][1]).sum())


def _log_sum(logits: Tensor) -> Tensor:
    """Log Σ exp over the last dimension, in float64 but for the exponentials."""
    peak = logits.amax(-1, keepdim=True)
    return peak[:, 0].double() + torch.exp(logits - peak).sum(-1).double().log()


def _better(value: Tensor, index: Tensor, logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """The larger of ``value`` and the largest of ``logits``, and its token."""
    peak, place = logits.max(-1)
    wins = peak > value
    return torch.where(wins, peak.double(), value), torch.where(wins, place + start, index)


def _nothing(positions: Tensor) -> Tensor:
    return torch.full((len(positions),), float("-inf"), dtype=torch.float64)


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
    width, room = min(vocabulary, VOCABULARY_ROWS), LOGITS_BYTES
    if passed.model.adapted_head:
        width, room = vocabulary, ADAPTED_BYTES
    yield from torch.split(positions, max(1, room // (4 * width)))

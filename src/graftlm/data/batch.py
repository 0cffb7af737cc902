"""Batches: the tokens that the model reads, and the tokens that it learns.

Labels are not shifted: ``labels[b, t]`` is the token at ``t`` if that token is learned, and
``IGNORED`` otherwise; the loss predicts ``labels[:, 1:]`` from positions ``[:, :-1]``. Padding is
determined by the lengths, never by a pad id, because the pad token may be the end token.

A packed example holds one or more sequences end to end. Their positions restart at zero. From this
transformers recognises them (with ``attention_mask=None`` and no cache) and masks attention between
them. A single sequence needs no mask and no positions: its padding comes after it, and attention is
causal.

transformers hands a mask of four dimensions to the attention function as it is. The borders of
packed sequences travel in that form to an attention function that needs no mask
(`models/block_attention.py`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graftlm.data.example import Example

__all__ = [
    "IGNORED",
    "Batch",
    "Example",
    "are_borders",
    "borders_of",
    "collate",
    "laid_end_to_end",
    "rounded_down",
    "rounded_length",
]

IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Tensors of one forward pass; B rows of L positions."""

    input_ids: Tensor
    """int64, (B, L)."""
    labels: Tensor
    """int64, (B, L): the token itself if it is learned, otherwise ``IGNORED``; not shifted."""
    attention_mask: Tensor | None = None
    """bool, (B, L): false on padding; ``None`` when there is none, or when rows are packed."""
    position_ids: Tensor | None = None
    """int64, (B, L): given for packed rows only, restarting at each sequence."""
    tokens: int = 0
    """The number of tokens, without padding."""
    borders: Tensor | None = None
    """int32, (1, 1, 1, S + 1), on the host: where each of S sequences of the only row starts, and
    L; see `borders_of`. Given if the model attends to them without a mask."""
    predicting: Tensor | None = None
    """int64, (S,): see `predicts`; known to a batch that was collated here."""

    @property
    def mask(self) -> Tensor | None:
        """What the model takes as its attention mask."""
        return self.attention_mask if self.borders is None else self.borders

    @property
    def predicts(self) -> Tensor:
        """int64, (S,): the positions, in B·L, whose hidden states predict a supervised token.

        It is counted where the batch is collated: on an accelerator the count would make the
        processor wait for all work before it.
        """
        return _predicting(self.labels) if self.predicting is None else self.predicting

    @property
    def supervised_tokens(self) -> int:
        """Tokens that count in the loss; the first token of a row does not."""
        return len(self.predicts)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        mask, positions = self.attention_mask, self.position_ids
        return Batch(
            self.input_ids.to(device),
            self.labels.to(device),
            None if mask is None else mask.to(device),
            None if positions is None else positions.to(device),
            self.tokens,
            self.borders,
            self.predicts.to(device),
        )


def _predicting(labels: Tensor) -> Tensor:
    row, position = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return row * labels.shape[1] + position


def rounded_length(length: int, most: int | None = None) -> int:
    """``length`` rounded up to a multiple of 8, and to one of eight lengths per octave.

    PyTorch compiles a kernel for each shape of its 16-bit products and never frees it: 20 MB per
    length for a small model. A small number of lengths bounds this and costs a few per cent of
    padding.

    Args:
        length: tokens of the longest row.
        most: the maximum length of the model; ``None`` if it has no limit.
    """
    step = _step(length)
    rounded = -(-length // step) * step
    return rounded if most is None or rounded <= most else max(length, most)


def rounded_down(length: int) -> int:
    """The largest rounded length that is at most ``length``."""
    return length // _step(length) * _step(length)


def _step(length: int) -> int:
    return max(8, 1 << max(0, (length - 1).bit_length() - 4))


def borders_of(lengths: Sequence[int]) -> Tensor:
    """Where sequences of these lengths start end to end, and where the last one stops."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)[None, None, None]


def are_borders(mask: Tensor | None) -> bool:
    """Whether a mask is a result of `borders_of`."""
    return mask is not None and mask.dtype == torch.int32 and mask.ndim == 4


def laid_end_to_end(example: Example) -> Batch:
    """One row of one or more sequences, with their borders and without padding."""
    batch, lengths = collate([example], None), example.lengths or ()
    return dataclasses.replace(batch, borders=borders_of(lengths)) if len(lengths) > 1 else batch


def collate(examples: Sequence[Example], pad_id: int | None, length: int | None = None) -> Batch:
    """Pad examples on the right and stack them.

    Args:
        examples: at least one; either all packed or none.
        pad_id: any valid token id; the mask depends on positions, so ``None`` (0) and eos are fine.
        length: L, at least the length of the longest example, which is the default.
    """
    lengths = np.array([len(example) for example in examples])
    shape = (len(examples), int(lengths.max()) if length is None else length)
    ids = np.full(shape, 0 if pad_id is None else pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        tokens = np.asarray(example.input_ids, dtype=np.int64)
        ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens)] = np.where(np.asarray(example.supervised), tokens, IGNORED)
    mask: Tensor | None = None
    positions: Tensor | None = None
    packed = [example.lengths for example in examples if example.lengths is not None]
    if (packed and len(examples) > 1) or any(len(sequences) > 1 for sequences in packed):
        positions = torch.from_numpy(_restarting_positions(examples, labels))
    elif not packed and lengths.min() < shape[1]:
        mask = torch.from_numpy(np.arange(shape[1]) < lengths[:, None])
    at, position = np.nonzero(labels[:, 1:] != IGNORED)
    return Batch(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        attention_mask=mask,
        position_ids=positions,
        tokens=int(lengths.sum()),
        predicting=torch.from_numpy(at * shape[1] + position),
    )


def _restarting_positions(
    examples: Sequence[Example], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Positions (B, L) that restart at each sequence and at the padding.

    This also ignores the label of each sequence's first token, because the token before it belongs
    to another sequence.
    """
    positions = np.tile(np.arange(labels.shape[1], dtype=np.int64), (len(labels), 1))
    for row, example in enumerate(examples):
        parts = (len(example),) if example.lengths is None else example.lengths
        starts = np.cumsum((0, *parts))
        for start in starts[starts < labels.shape[1]]:
            positions[row, start:] = np.arange(labels.shape[1] - start)
            labels[row, start] = IGNORED
    return positions

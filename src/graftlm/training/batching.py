"""Batching: from examples to micro-batches on the model's device, padded to a few lengths.

A batch is computed in parts. The gradients of the parts add up to the gradient of the batch
(`training/step.py`). Only the activations of one part are in memory at a time, and a CPU needs as
much time per row for 512 rows as for 5,000.

Rows are laid end to end if that saves padding at no cost. Two conditions must hold: attention skips
what is outside the sequences (`models/block_attention.py`), and the model keeps them apart. On a
GPU with a kernel for that a batch is one row without any padding; a CPU pads it to a few lengths.
Otherwise rows are stacked and padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from graftlm.data.batch import (
    Batch,
    Example,
    collate,
    laid_end_to_end,
    rounded_down,
    rounded_length,
)
from graftlm.data.pack import PackedExamples, lengths_of, pack
from graftlm.models.capabilities import capabilities
from graftlm.system.placement import placement_of

__all__ = [
    "end_to_end",
    "micro_batches",
    "most_positions",
    "parts",
    "room_of",
]


def micro_batches(
    model: PreTrainedModel, examples: Sequence[Example], tokens: int | None = None
) -> list[Batch]:
    """Collate ``examples`` for ``model``. The position marks padding, so no pad token is needed.

    The layout does not change the update: each row attends only to itself, and all rows have the
    same weight.

    Args:
        model: gives the device and the maximum length of a row.
        examples: at least one.
        tokens: `TrainConfig.micro_batch_tokens`.
    """
    placement, most = placement_of(model), most_positions(model.config)
    at_once = placement.positions_at_once(tokens)
    can = capabilities(model)
    if not placement.runs_on_cpu and placement.world_size == 1 and can.attends_between_borders:
        members = [[*range(len(examples))]]
        if at_once is not None:
            members = end_to_end(lengths_of(examples), at_once, None)
        return [placement.move(laid_end_to_end(row)) for row in PackedExamples(examples, members)]
    quick = placement.rows_end_to_end and can.attends_by_blocks
    if quick and at_once is not None and can.keeps_sequences_apart:
        rows = PackedExamples(examples, end_to_end(lengths_of(examples), at_once, most))
        return [
            placement.move(collate([row], None, rounded_length(len(row), most))) for row in rows
        ]
    lengths = [rounded_length(len(example), most) for example in examples]
    return [
        placement.move(collate([examples[i] for i in part], pad_id=None, length=lengths[part[-1]]))
        for part in parts(lengths, at_once)
    ]


def end_to_end(
    lengths: Sequence[int] | npt.NDArray[np.int32], at_once: int, most: int | None
) -> list[list[int]]:
    """Row numbers in parts that are computed as one sequence each.

    Args:
        lengths: tokens of each row.
        at_once: maximum tokens in a part; a longer row is a part of its own.
        most: the maximum length that the model can read; ``None`` if it has no limit.
    """
    room = room_of(at_once, most)
    short = [row for row, length in enumerate(lengths) if length <= room]
    packed = pack([int(lengths[row]) for row in short], room)
    alone = [[row] for row, length in enumerate(lengths) if length > room]
    return alone + [[short[i] for i in part] for part in packed]


def room_of(at_once: int, most: int | None) -> int:
    """Maximum tokens in a part of several rows, such that its padded length obeys both limits."""
    room = at_once if most is None else min(at_once, most)
    return room if room == most else rounded_down(room)


def parts(lengths: Sequence[int], positions: int | None) -> list[list[int]]:
    """Row numbers in as few parts as possible, each of at most ``positions``.

    Rows are sorted by length, which keeps padding small; each part ends with its longest row. A row
    longer than ``positions`` is a part of its own.

    Args:
        lengths: positions of each row.
        positions: maximum of (longest row × rows) in a part; ``None``: one part.
    """
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        room = positions is None or (found and lengths[row] * (len(found[-1]) + 1) <= positions)
        if found and room:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def most_positions(config: object) -> int | None:
    """The longest sequence that a model of this config can read; ``None`` if it states none."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) else None

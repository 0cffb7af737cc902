"""What a model is given: examples in micro-batches of one of a few lengths, on its device.

A batch of rows is computed in parts, whose gradients add up to the batch's (`training/step.py`).
Only one part's activations are in memory, and a CPU multiplies 512 rows as fast as 5,000.

Rows are laid end to end where that saves padding at no cost: where attention skips the blocks
outside the mask (`models/block_attention.py`), and with a model that keeps sequences apart.
Elsewhere they are stacked and padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from graftlm.data.batch import Batch, Example, collate, rounded_down, rounded_length
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
    """Collate ``examples`` for ``model``; padding is told by position, so it needs no pad token.

    The update is the same however they are laid: each row attends to itself, and all count alike.

    Args:
        model: gives the device, and the most positions a row may have.
        examples: at least one.
        tokens: `TrainConfig.micro_batch_tokens`.
    """
    placement, most = placement_of(model), most_positions(model.config)
    at_once = placement.positions_at_once(tokens)
    can = capabilities(model)
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
        at_once: tokens of a part, at most, a row at least.
        most: the most positions that the model can read, where it has a limit.
    """
    room = room_of(at_once, most)
    short = [row for row, length in enumerate(lengths) if length <= room]
    packed = pack([int(lengths[row]) for row in short], room)
    alone = [[row] for row, length in enumerate(lengths) if length > room]
    return alone + [[short[i] for i in part] for part in packed]


def room_of(at_once: int, most: int | None) -> int:
    """Tokens in a part of several rows, at most: as many as are still within the limits rounded."""
    room = at_once if most is None else min(at_once, most)
    return room if room == most else rounded_down(room)


def parts(lengths: Sequence[int], positions: int | None) -> list[list[int]]:
    """Row numbers in as few parts as there can be of at most ``positions`` each, a row at least.

    Rows are taken from the shortest to the longest, which pads little; each part ends with its
    longest row.

    Args:
        lengths: positions of each row.
        positions: longest row × rows of a part, at most; ``None``: one part.
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
    """The longest sequence that a model of this config can read, where it says so."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) else None

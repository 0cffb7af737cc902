"""Measures whether a model keeps packed sequences apart.

Most models of transformers recognise packed sequences by positions that restart. Some (OPT, Falcon
in 5.23) do not pass the positions on to the attention mask; others carry a state (Mamba). In those,
each sequence would silently depend on the sequences before it. If attention is limited to a window
or to a few selected positions (DeepSeek-V3.2), a long row may mix sequences where a short row does
not. So the limits are lowered during the test, below the length of the test rows.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graftlm.data.batch import borders_of, collate
from graftlm.data.example import Example
from graftlm.errors import ModelError
from graftlm.models.probing import being_probed
from graftlm.system.placement import placement_of

__all__ = ["attends_between_borders", "keeps_apart", "takes_positions"]

_LENGTHS = (9, 7)
_LIMITS = ("sliding_window", "attention_chunk_size", "index_topk")
"""The names that transformers' configs use for a limit on the positions of attention."""
_LOWERED = 4
"""The limit during the test: less than each of `_LENGTHS`."""
_ANOTHER = 1e-3
"""Largest change of logits by a preceding sequence, in their standard deviations. It is zero,
because masked positions are multiplied by zero."""
_FIRST = {torch.float32: 1e-4, torch.float64: 1e-4}
_FIRST_NARROW = 0.2
"""The same for being the first sequence, in 32 or 16 bits: the order of summation differs."""

log = logging.getLogger(__name__)


def keeps_apart(model: Any) -> bool:
    """Whether a sequence has the same logits alone and after another one."""
    if not takes_positions(model):
        return False
    try:
        with being_probed(model), _limits_lowered(model):
            another, first, dtype = _changes(model)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        log.warning("%s does not read packed sequences: %s", type(model).__name__, error)
        return False
    return another <= _ANOTHER and first <= _FIRST.get(dtype, _FIRST_NARROW)


def attends_between_borders(model: Any) -> bool:
    """Whether packed sequences have the same logits with borders as with the mask they stand for.

    The attention of the model must be the one of `block_attention.py`.
    """
    count = min(int(model.get_input_embeddings().num_embeddings), 100)
    rows = [np.arange(7, 7 + size, dtype=np.int32) % count for size in (*_LENGTHS, 1)]
    try:
        with being_probed(model), _limits_lowered(model):
            with_mask, with_borders = (_logits(model, *rows, borders=b) for b in (False, True))
    except (AttributeError, IndexError, ModelError, RuntimeError, TypeError, ValueError) as error:
        log.info("%s does not take borders: %s", type(model).__name__, error)
        return False
    theirs, ours = with_mask.float(), with_borders.float()
    change = float((ours - theirs).abs().max()) / (float(theirs.std()) + 5e-5)
    return change <= _FIRST.get(with_mask.dtype, _FIRST_NARROW)


@contextlib.contextmanager
def _limits_lowered(model: Any) -> Iterator[None]:
    """Lower each attention limit that the config or a module has."""
    holders = [model.config, model.config.get_text_config(), *model.modules()]
    own = [
        (holder, name, value)
        for holder in {id(holder): holder for holder in holders}.values()
        for name in _LIMITS
        if isinstance(value := getattr(holder, name, None), int) and value > _LOWERED
    ]
    try:
        for holder, name, _ in own:
            setattr(holder, name, _LOWERED)
        yield
    finally:
        for holder, name, value in own:
            setattr(holder, name, value)


def takes_positions(model: Any) -> bool:
    """Whether a model accepts position ids, which mark the starts of sequences."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _changes(model: Any) -> tuple[float, float, torch.dtype]:
    """How much a sequence's logits change with another sequence, or none, before it.

    Returns:
        Both changes (see `_ANOTHER`), in standard deviations, and the type of the computation.
    """
    count = min(int(model.get_input_embeddings().num_embeddings), 100)
    first, length = _LENGTHS
    sequence = np.arange(first, first + length, dtype=np.int32) % count
    before = np.arange(first, dtype=np.int32) % count
    after = (before + 11) % count
    logits = [
        _logits(model, before, sequence)[first:],
        _logits(model, after, sequence)[first:],
        _logits(model, sequence, before)[:length],
    ]
    dtype = logits[0].dtype
    one, another, front = (each.float() for each in logits)
    spread = float(one.std()) + 5e-5
    moves = [float((one - other).abs().max()) / spread for other in (another, front)]
    return moves[0], moves[1], dtype


def _logits(model: Any, *sequences: npt.NDArray[np.int32], borders: bool = False) -> Tensor:
    """The logits of each token of the packed sequences, with a mask or with borders."""
    ids = np.concatenate(sequences)
    lengths = tuple(len(sequence) for sequence in sequences)
    example = Example(ids, np.ones(len(ids), dtype=np.bool_), lengths=lengths)
    batch = collate([example], 0).to(placement_of(model).first)
    logits: Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=borders_of(lengths) if borders else None,
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits
    return logits[0]

"""Whether a model keeps packed sequences apart: asked of the model itself.

Most of transformers' models tell packed sequences by positions that restart. Some (OPT, Falcon in
5.23) do not pass the positions on to the attention mask, others carry a state along (Mamba), and
each sequence would silently depend on those before it.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from graftlm.data.batch import collate
from graftlm.data.example import Example
from graftlm.models.probing import being_probed

__all__ = ["keeps_apart", "takes_positions"]

_LENGTHS = (3, 5)
_ANOTHER = 1e-3
"""Another sequence before it may change logits by so much, in standard deviations of them: nothing,
for all that is hidden is multiplied by zero."""
_FIRST = 0.2
"""The same for being the first: summed in another order, perhaps in 16 bits, layer by layer."""

log = logging.getLogger(__name__)


def keeps_apart(model: Any) -> bool:
    """Whether a sequence's logits are the same behind another one."""
    if not takes_positions(model):
        return False
    try:
        with being_probed(model):
            another, first = _changes(model)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        log.warning("%s does not read packed sequences: %s", type(model).__name__, error)
        return False
    return another <= _ANOTHER and first <= _FIRST


def takes_positions(model: Any) -> bool:
    """Whether a model can be told where its sequences start."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _changes(model: Any) -> tuple[float, float]:
    """How far a sequence's logits move if another one is before it, or none: see `_ANOTHER`."""
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
    spread = float(logits[0].std()) + 5e-5
    another, front = (float((logits[0] - other).abs().max()) for other in logits[1:])
    return another / spread, front / spread


def _logits(model: Any, *sequences: npt.NDArray[np.int32]) -> Tensor:
    """Of each token of the sequences, packed."""
    ids = np.concatenate(sequences)
    lengths = tuple(len(sequence) for sequence in sequences)
    example = Example(ids, np.ones(len(ids), dtype=np.bool_), lengths=lengths)
    batch = collate([example], 0).to(next(model.parameters()).device)
    logits: Tensor = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
    ).logits
    return logits[0].float()

"""Whether a model keeps packed sequences apart: asked of the model itself.

Most of transformers' models tell packed sequences by positions that restart. Some (OPT, Falcon in
5.23) do not pass the positions on to the attention mask, others carry a state along (Mamba), and
each sequence would silently depend on those before it.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from graftlm.data.batch import collate
from graftlm.data.example import Example
from graftlm.errors import ConfigError

__all__ = ["keeps_apart", "require_packable"]

_LENGTHS = (3, 5)
_ANOTHER = 1e-3
"""Another sequence before it may change logits by so much, in standard deviations of them: nothing,
for all that is hidden is multiplied by zero."""
_ALONE = 0.2
"""The same for none before it: summed in another order, perhaps in 16 bits, layer by layer."""

_known: Any = WeakIdKeyDictionary()


def keeps_apart(model: Any) -> bool:
    """Whether a sequence's logits are the same behind another one; asked once of each model."""
    found: bool | None = _known.get(model)
    if found is None:
        another, alone = _changes(model)
        found = _known[model] = another <= _ANOTHER and alone <= _ALONE
    return found


def require_packable(model: Any) -> None:
    """Refuse a model that does not keep packed sequences apart.

    Raises:
        ConfigError: the model mixes packed sequences.
    """
    if not keeps_apart(model):
        raise ConfigError(
            f"data.packing: {type(model).__name__} does not keep packed sequences apart (a "
            "sequence's logits change behind another). Set data.packing to false; "
            "data.group_by_length saves most of the padding too."
        )


def _changes(model: Any) -> tuple[float, float]:
    """How far a sequence's logits move if another one, or none, is before it: see `_ANOTHER`."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return math.inf, math.inf
    count = min(int(model.get_input_embeddings().num_embeddings), 100)
    first, length = _LENGTHS
    sequence = np.arange(first, first + length, dtype=np.int32) % count
    before = np.arange(first, dtype=np.int32) % count
    after = (before + 11) % count
    training = model.training
    model.eval()
    logits = [
        _logits(model, np.concatenate([part, sequence]))[:, -length:]
        for part in (before, after, before[:0])
    ]
    model.train(training)
    spread = float(logits[0].std()) + 5e-5
    another, alone = (float((logits[0] - other).abs().max()) for other in logits[1:])
    return another / spread, alone / spread


def _logits(model: Any, ids: npt.NDArray[np.int32]) -> Tensor:
    """Of the last `_LENGTHS` tokens, what is before them packed as a sequence of its own."""
    lengths = _LENGTHS if len(ids) > _LENGTHS[1] else None
    example = Example(ids, np.ones(len(ids), dtype=np.bool_), lengths=lengths)
    batch = collate([example], 0).to(next(model.parameters()).device)
    with torch.no_grad():
        found: Tensor = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).logits
    return found.float()

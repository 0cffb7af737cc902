"""Whether a model keeps packed sequences apart: asked of the model itself.

Most of transformers' models tell packed sequences by positions that restart. Some (OPT, Falcon in
5.23) do not pass the positions on to the attention mask, and each sequence would silently attend to
those before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from graftlm.data.batch import collate
from graftlm.data.example import Example
from graftlm.errors import ConfigError

__all__ = ["require_packable"]

_LENGTHS = (3, 5)


def require_packable(model: Any) -> None:
    """Compare a short sequence alone with the same sequence behind another.

    Raises:
        ConfigError: the model mixes packed sequences.
    """
    count = min(int(model.get_input_embeddings().num_embeddings), 100)
    ids = np.arange(sum(_LENGTHS), dtype=np.int32) % count
    learned = np.ones(len(ids), dtype=np.bool_)
    first = _LENGTHS[0]
    device = next(model.parameters()).device
    alone = collate([Example(ids[first:], learned[first:])], 0).to(device)
    packed = collate([Example(ids, learned, lengths=_LENGTHS)], 0).to(device)
    training = model.training
    with torch.no_grad():
        model.eval()
        expected = model(input_ids=alone.input_ids, use_cache=False).logits
        found = model(
            input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False
        ).logits[:, first:]
        model.train(training)
    error = float((found - expected).float().abs().max())
    # bfloat16 rounds to 1 in 256; attending to another sequence changes logits far more.
    if not error <= 0.02 * float(expected.float().std()) + 1e-6:
        raise ConfigError(
            f"data.packing: {type(model).__name__} does not keep packed sequences apart (a "
            f"sequence's logits change by up to {error:.3g} behind another). Set data.packing to "
            "false; data.group_by_length saves most of the padding too."
        )

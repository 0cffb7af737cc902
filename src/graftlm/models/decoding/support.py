"""Measures whether a model can continue rows of different lengths with a `RowCache`.

Models with a recurrent state (Mamba), with a cache of their own, or without position ids cannot.
They are continued by transformers' `generate`.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from graftlm.models.decoding.forward import Forward
from graftlm.models.probing import being_probed

__all__ = ["continues_rows"]

LENGTHS = (9, 5)
READ = 3
"""Tokens of the longer row that are read one by one after the rest."""
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}
CLOSE_NARROW = 0.35
"""Largest root mean square of the difference of logits, in their standard deviations. In 16 bits
another order of sums changes those of Gemma-3-270M by up to 0.2 on a row without sense; seeing the
padding changes them by 1.
"""
FAILURES = (
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
log = logging.getLogger(__name__)


def continues_rows(model: Any) -> bool:
    """Whether two padded rows, read in pieces, end in the logits that each has alone at once."""
    try:
        with being_probed(model):
            return _compare(model)
    except FAILURES as error:
        log.info("%s is continued by transformers: %s", type(model).__name__, error)
        return False


def _compare(model: Any) -> bool:
    forward = Forward(model)
    if not forward.takes_positions:
        return False
    count = min(int(model.get_input_embeddings().num_embeddings), 100)
    long, short = (torch.arange(3, 3 + length) * 7 % count for length in LENGTHS)
    alone = [_last(model, row.to(forward.device)) for row in (long, short)]
    gap = len(long) - len(short)
    ids = torch.stack([long, torch.cat([torch.zeros(gap, dtype=torch.long), short])])
    cache, starts, read = forward.cache(), [0, gap], len(long) - READ
    logits = forward(ids[:, :read], cache, starts, 0)
    for at in range(read, len(long)):
        logits = forward(ids[:, at : at + 1], cache, starts, at)
    if cache.length != len(long):
        return False
    # Rows that join a batch come with their own columns.
    joined = forward.cache()
    joined.add([cache.of_row(0, 0, len(long) - 1), cache.of_row(1, gap, len(long) - 1)])
    again = forward(ids[:, -1:], joined, starts, len(long) - 1)
    bound = CLOSE.get(alone[0].dtype, CLOSE_NARROW)
    return all(
        float((got - want).pow(2).mean().sqrt()) <= bound * (float(want.std()) + 5e-5)
        for both in (logits, again)
        for got, want in zip(both.float(), (a.float() for a in alone), strict=True)
    )


def _last(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids[None], use_cache=False).logits
    return logits[0, -1]

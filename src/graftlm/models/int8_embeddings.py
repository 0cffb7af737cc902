"""Store a loaded model's embedding table and output head in 8 bits: `model.embeddings=int8`.

In a small model with a large vocabulary they are most of the weights: two thirds of Gemma-3-270M.
The 4-bit format of the linear layers does not apply to them, because the head affects every token.
The classes of table and head do not tell whether they only look up and multiply, so the model's
logits before and after are compared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graftlm.errors import ModelError
from graftlm.frozen.embedding import FrozenEmbedding, FrozenOutput
from graftlm.frozen.formats import format_named
from graftlm.frozen.stored_weight import StoredWeight
from graftlm.frozen.weight import WeightSettings
from graftlm.models.fused import OutputLinear
from graftlm.system.placement import placement_of

__all__ = ["rows_in_int8"]

CLOSE = 0.25
"""Largest relative difference of the logits, by norm; Gemma-3-270M has 0.09, on a text 0.02."""
COMPARED = 16
"""How many tokens, spread over the vocabulary, are compared by their logits."""


def rows_in_int8(model: Any, dtype: torch.dtype | None = None) -> None:
    """Replace table and head, in place. On the meta device no logits are compared.

    Args:
        model: loaded, or on the meta device.
        dtype: the type of the vectors that a lookup returns; by default that of the table.

    Raises:
        ModelError: the model does not work with 8-bit embeddings. Discard it: it has changed.
    """
    kind = type(model).__name__
    try:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:  # the model class does not name its table or head
        table = head = None
    if not isinstance(table, nn.Embedding) or type(head) not in (nn.Linear, OutputLinear):
        raise ModelError(
            "model.embeddings=int8 needs an embedding table and a linear output head; "
            f"{kind} has {type(table).__name__} and {type(head).__name__}. "
            "Use model.embeddings=keep."
        )
    empty, tied = table.weight.is_meta, head.weight is table.weight
    before = None if empty else _logits(model)
    rows = _rows(head.weight)
    model.set_output_embeddings(FrozenOutput(rows, head.bias))
    del head  # so that only one original is in memory at a time
    rows = rows if tied else _rows(table.weight)
    new = FrozenEmbedding(rows, dtype or table.weight.dtype, _factor(table), table.padding_idx)
    del table
    model.set_input_embeddings(new)
    if before is None:
        return
    try:
        after = _logits(model)
    except AttributeError as error:  # it reads `weight` directly, which no longer exists
        raise ModelError(
            f"{kind} reads its embeddings in a way of its own ({error}). Use model.embeddings=keep."
        ) from error
    off = float((after - before).norm() / before.norm())
    if not off <= CLOSE:
        raise ModelError(
            f"with embeddings in 8 bits the logits of {kind} are off by {off:.0%}: it computes "
            "something of its own with them, or 8 bits are too few. Use model.embeddings=keep."
        )


def _rows(weight: Tensor) -> StoredWeight:
    return StoredWeight(format_named("int8").quantize(weight, WeightSettings()))


def _factor(table: Any) -> float:
    """The factor of a table's output (Gemma: √D); on the meta device only whether there is one."""
    factor = getattr(table, "scalar_embed_scale", getattr(table, "embed_scale", None))
    if factor is None:
        return 1.0
    return 2.0 if isinstance(factor, Tensor) and factor.is_meta else float(factor)


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """The logits of a few tokens, minus their mean, which the softmax ignores."""
    training, device = model.training, placement_of(model).first
    model.train(False)
    try:
        words = torch.linspace(0, model.config.get_text_config().vocab_size - 1, COMPARED)
        ids = words.long().unsqueeze(0).to(device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        model.train(training)
    return logits - logits.mean(-1, keepdim=True)

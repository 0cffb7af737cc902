"""Store a loaded model's embedding table and output head in 8 bits: `model.embeddings=int8`.

Both are most of a small model with a large vocabulary: two thirds of Gemma-3-270M. The format of
the linear layers leaves them alone, because every word meets the head. Whether table or head do
more than look up and multiply is not read from their classes: the model's logits before and after
are compared.
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

__all__ = ["rows_in_int8"]

CLOSE = 0.25
"""Largest difference of the logits, by norm; that of Gemma-3-270M is 0.09, on a text 0.02."""
COMPARED = 16
"""Words from all over the vocabulary whose logits are compared."""


def rows_in_int8(model: Any, dtype: torch.dtype | None = None) -> None:
    """Replace table and head, in place; of a model on the meta device nothing is compared.

    Args:
        model: loaded, or empty.
        dtype: of the words that are looked up; the table's by default.

    Raises:
        ModelError: the model cannot have them in 8 bits; it is of no more use.
    """
    kind = type(model).__name__
    try:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:  # its author has not said which they are
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
    del head  # before the table is quantised too: one original at a time
    rows = rows if tied else _rows(table.weight)
    new = FrozenEmbedding(rows, dtype or table.weight.dtype, _factor(table), table.padding_idx)
    del table
    model.set_input_embeddings(new)
    if before is None:
        return
    try:
        after = _logits(model)
    except AttributeError as error:  # it reads the weight by itself, and there is none
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
    """What a table multiplies its words by (Gemma's √D); without values, whether it does."""
    factor = getattr(table, "scalar_embed_scale", getattr(table, "embed_scale", None))
    if factor is None:
        return 1.0
    return 2.0 if isinstance(factor, Tensor) and factor.is_meta else float(factor)


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Of a few words, without what all have in common and no softmax sees."""
    training, device = model.training, next(model.parameters()).device
    model.train(False)
    try:
        words = torch.linspace(0, model.config.get_text_config().vocab_size - 1, COMPARED)
        ids = words.long().unsqueeze(0).to(device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        model.train(training)
    return logits - logits.mean(-1, keepdim=True)

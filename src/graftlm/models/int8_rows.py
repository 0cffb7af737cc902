"""Store a loaded model's embedding table and output head in 8 bits: `model.embeddings=int8`.

Both are most of a small model with a large vocabulary: two thirds of Gemma-3-270M. NF4 leaves them
alone, for every word meets the head. Whether a table does more than look up is not read from its
class: the words of the old and the new one are compared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graftlm.errors import ModelError
from graftlm.layers import OutputLinear
from graftlm.layers.int8_rows import Int8Embedding, Int8Output, Int8Rows, quantize_rows

__all__ = ["rows_in_int8"]

CLOSE = 0.02
"""Difference of the two tables, by norm; rounding to 8 bits brings it to about 0.01."""


def rows_in_int8(model: Any, dtype: torch.dtype | None = None) -> None:
    """Replace table and head, in place; on the meta device only their shapes are known.

    Args:
        model: loaded, or empty.
        dtype: of the words that are looked up; the table's by default.

    Raises:
        ModelError: the model has a table or a head of another kind; it is as it was.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(table, nn.Embedding) or type(head) not in (nn.Linear, OutputLinear):
        raise ModelError(
            "model.embeddings=int8 needs an embedding table and a linear output head; "
            f"{type(model).__name__} has {type(table).__name__} and {type(head).__name__}. "
            "Use model.embeddings=keep."
        )
    rows = _rows_of(table.weight)
    empty = table.weight.is_meta
    factor = getattr(
        table, "scalar_embed_scale", None if empty else getattr(table, "embed_scale", 1)
    )
    new = Int8Embedding(rows, dtype or table.weight.dtype, float(factor or 1), table.padding_idx)
    if not empty and not _agree(table, new):
        raise ModelError(
            f"the embedding table of {type(model).__name__}, a {type(table).__name__}, computes "
            "something of its own. Use model.embeddings=keep."
        )
    tied = head.weight is table.weight
    model.set_input_embeddings(new)
    model.set_output_embeddings(Int8Output(rows if tied else _rows_of(head.weight), head.bias))


def _rows_of(weight: torch.Tensor) -> Int8Rows:
    if not weight.is_meta:
        return quantize_rows(weight)
    codes = torch.empty(weight.shape, dtype=torch.int8, device="meta")
    return Int8Rows(codes, torch.empty(len(weight), device="meta"))


@torch.no_grad()
def _agree(table: nn.Embedding, new: Int8Embedding) -> bool:
    """Whether both give the same words, some from all over the table."""
    ids = torch.arange(0, table.num_embeddings, max(1, table.num_embeddings // 64))
    theirs, ours = table(ids.to(table.weight.device)).float(), new(ids).float()
    return bool((ours - theirs).norm() <= CLOSE * theirs.norm())

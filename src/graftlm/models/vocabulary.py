"""A longer vocabulary: more rows in the embedding table and in the output head.

    W' = [W; m, m, …]          m = mean of the rows of W

Each new row starts as the mean of the others, so that a new token is as likely as an average one
and its logit does not overshadow the rest. The rows are meant to be trained, or set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.errors import ModelError

__all__ = ["first_rows", "grow_vocabulary", "grown_names", "padded", "table_rows"]

_FIRST = "first_rows"
MOST_NEW = 65_536
"""New rows at most; more is taken for a mistake in an index."""


def table_rows(model: Any) -> int:
    """The rows of the model's embedding table; 0 if it names none."""
    try:
        return int(getattr(model.get_input_embeddings(), "num_embeddings", 0))
    except (AttributeError, NotImplementedError):
        return 0


def first_rows(model: Any) -> int:
    """The rows that the table had before `grow_vocabulary`; 0 if the model names no table."""
    table = model.get_input_embeddings() if table_rows(model) else None
    table = getattr(table, "base", table)
    return int(getattr(table, _FIRST, None) or table_rows(model))


def padded(weight: Tensor, rows: int) -> Tensor:
    """``weight`` with new rows up to ``rows``, each the mean of the others; 0 adds none."""
    if not rows or rows <= len(weight):
        return weight
    new = rows - len(weight)
    mean = weight.mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    return torch.cat((weight, mean.expand(new, *weight.shape[1:])))


def grown_names(model: Any) -> set[str]:
    """The parameters that `grow_vocabulary` makes longer."""
    holders = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if id(module) in holders
        for key, _ in module.named_parameters(recurse=False)
    }


def grow_vocabulary(model: Any, rows: int) -> Callable[[], None]:
    """Give the embedding table and the output head ``rows`` rows, in place; they may have more.

    Args:
        model: a model of transformers, without adapters on the two.
        rows: at least so many.

    Returns:
        A function that undoes it.

    Raises:
        ModelError: the two are stored in 8 bits, or the model has another table by token.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    size = table_rows(model)
    if rows <= size:
        return lambda: None
    _require_growable(model, table, head, size, rows)
    undo: list[tuple[Any, str, Any]] = []

    def put(holder: Any, name: str, value: Any) -> None:
        undo.append((holder, name, getattr(holder, name, None)))
        setattr(holder, name, value)

    made: dict[int, nn.Parameter] = {}
    with torch.no_grad():
        for holder in (table, *([] if head is None else [head])):
            for name, old in list(holder.named_parameters(recurse=False)):
                if id(old) not in made:
                    made[id(old)] = nn.Parameter(padded(old.detach(), rows), old.requires_grad)
                put(holder, name, made[id(old)])
    put(table, "num_embeddings", rows)
    put(table, _FIRST, getattr(table, _FIRST, size))
    if head is not None:
        put(head, "out_features", rows)
    text = model.config.get_text_config()
    for holder in (text, *([] if text is model.config else [model.config]), *model.modules()):
        if holder is text or vars(holder).get("vocab_size") == size:
            put(holder, "vocab_size", rows)

    def back() -> None:
        for holder, name, value in reversed(undo):
            setattr(holder, name, value)

    return back


def _require_growable(model: Any, table: Any, head: Any, size: int, rows: int) -> None:
    said = f"the vocabulary cannot grow from {size} to {rows} tokens"
    if not isinstance(table, nn.Embedding) or not isinstance(head, nn.Linear | None):
        kinds = f"{type(table).__name__} and {type(head).__name__}"
        raise ModelError(
            f"{said}: table and head are {kinds}, expected an embedding and a linear layer in 16 "
            "or 32 bits without adapters (model.embeddings=keep)"
        )
    if rows - size > MOST_NEW:
        raise ModelError(f"{said}: at most {MOST_NEW} new ones; check the token ids")
    others = [
        name
        for name, module in model.named_modules()
        if module is not table and getattr(module, "num_embeddings", None) == size
    ]
    if others:
        raise ModelError(f"{said}: the model has another table by token, {others[0]}")

"""From `data.new_tokens` to the rows that train: `lora.trainable_token_indices`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graftlm.adapters.trained_parts import longest
from graftlm.config import LoRAConfig, RunConfig
from graftlm.models.vocabulary import grow_vocabulary, table_rows
from graftlm.training.resolve import changed

__all__ = ["longer_config", "longer_vocabulary", "planned_tokens", "with_rows_of"]


def with_rows_of(request: RunConfig, ids: Sequence[int]) -> RunConfig:
    """``request`` with the rows of these token ids among those that train."""
    before = request.lora.trainable_token_indices
    if not ids or not isinstance(before, tuple):
        return request
    rows = tuple(dict.fromkeys((*before, *ids)))
    return changed(request, "lora", trainable_token_indices=rows)


def planned_tokens(config: RunConfig, model: Any) -> LoRAConfig:
    """The adapter settings of a plan, which has no tokenizer: new tokens behind the last one."""
    rows = config.lora.trainable_token_indices
    if rows or not config.data.new_tokens:
        return config.lora
    first = table_rows(model)
    ids = range(first, first + len(config.data.new_tokens))
    return with_rows_of(config, ids).lora


def longer_vocabulary(model: Any, lora: LoRAConfig) -> None:
    """Give a model that trains whole the rows of its new tokens, in place."""
    grow_vocabulary(model, longest(lora))


def longer_config(model_config: Mapping[str, Any], lora: LoRAConfig) -> dict[str, Any]:
    """The content of a config.json with the vocabulary that the run will have."""
    rows, longer = longest(lora), dict(model_config)
    for part in (longer, longer.get("text_config")):
        if isinstance(part, dict) and isinstance(size := part.get("vocab_size"), int):
            part["vocab_size"] = max(size, rows)
    return longer

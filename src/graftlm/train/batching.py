"""The batch a model is given: examples padded to one of a few lengths, on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from graftlm.data.batch import Batch, Example, collate, rounded_length

__all__ = ["batch_for", "most_positions"]


def batch_for(model: PreTrainedModel, examples: Sequence[Example]) -> Batch:
    """Collate ``examples`` for ``model``; padding is told by position, so it needs no pad token."""
    longest = max(len(example) for example in examples)
    length = rounded_length(longest, most_positions(model.config))
    return collate(examples, pad_id=None, length=length).to(next(model.parameters()).device)


def most_positions(config: object) -> int | None:
    """The longest sequence that a model of this config can read, where it says so."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) else None

"""Which attention a transformers model uses, by its registered name.

Seen in transformers 5.23: `config._attn_implementation`, `_can_set_attn_implementation`.
Setting it has a public method, `set_attn_implementation`; reading it has none.
"""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["attention_of", "attention_set", "can_set_attention"]


def attention_of(config: Any) -> str | None:
    """The name under which the attention of a model's config is registered."""
    name: str | None = config._attn_implementation
    return name


def attention_set(config: Any, name: str) -> Any:
    """A copy of a config that names another attention."""
    changed = copy.copy(config)
    changed._attn_implementation = name
    return changed


def can_set_attention(model: Any) -> bool:
    """Whether the model's code asks the registry for its attention."""
    can: bool = model._can_set_attn_implementation()
    return can

"""Where an answer ends: the model's end tokens, and its last position."""

from __future__ import annotations

import sys
from typing import Any

from graftlm.data.audit.fits import limits_of
from graftlm.errors import DataError

__all__ = ["end_tokens", "room_after"]


def room_after(model: Any, longest: int) -> int:
    """How many tokens may follow a prompt in a model with a fixed number of positions.

    Raises:
        DataError: the prompt leaves no position.
    """
    limits = limits_of(model.config.to_dict())
    if limits.positions is None or not limits.fixed:
        return sys.maxsize
    if longest >= limits.positions:
        raise DataError(
            f"the prompt has {longest:,} tokens, and the model has {limits.positions:,} positions "
            "for prompt and answer; shorten it"
        )
    return limits.positions - longest


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """All tokens that end a text: those of the tokenizer and of the model's settings."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return {token for token in (tokenizer.eos_token_id, *listed) if token is not None}

"""New tokens of a run: added to the tokenizer before the rows are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graftlm.errors import ConfigError

__all__ = ["add_tokens"]


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Add those of ``tokens`` that the tokenizer does not have; returns the ids of all.

    Raises:
        ConfigError: a token is without characters.
    """
    if not all(tokens):
        raise ConfigError("data.new_tokens holds a token without characters; expected text")
    known = tokenizer.get_vocab() if tokens else {}
    if missing := [token for token in tokens if token not in known]:
        tokenizer.add_tokens(missing)
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]

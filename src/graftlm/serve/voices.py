"""The names that a client may ask for, and how each turns a request into tokens."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from graftlm.data import render_prompt, stop_tokens
from graftlm.data.messages import RowError, parse_tools
from graftlm.errors import ConfigError, DataError
from graftlm.models.decoding.constraint import Constraint
from graftlm.serve.structured import Words

__all__ = ["TokenizerVoice", "Voice", "require_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_lock = threading.Lock()
"""A tokenizer is not made for several threads."""


class Voice(Protocol):
    """One name: a base, or an adapter on it, with the tokenizer of its training."""

    @property
    def adapter(self) -> str | None:
        """The adapter's name in the model; ``None``: the base."""

    @property
    def stop(self) -> frozenset[int]:
        """Tokens that end an answer."""

    def chat(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> tuple[int, ...]:
        """The tokens before the answer to a conversation."""

    def text(self, prompt: str) -> tuple[int, ...]:
        """The tokens of a text to continue."""

    @property
    def template(self) -> Any:
        """The chat template, which tells the form of tool calls."""

    def constraint(self, grammar: str) -> Constraint:
        """What keeps an answer to a grammar."""

    def term(self, text: str) -> str:
        """How a grammar writes a text that may be a token of its own."""


@dataclasses.dataclass(frozen=True)
class TokenizerVoice:
    """A name served from a model of transformers.

    Attributes:
        tokenizer: with the chat template of the training.
        adapter: the adapter's name in the model; ``None``: the base.
        stop: tokens that end an answer.
        words: the tokens, for constraints.
    """

    tokenizer: Any
    adapter: str | None
    stop: frozenset[int]
    words: Words

    @classmethod
    def of(cls, tokenizer: Any, adapter: str | None) -> TokenizerVoice:
        """The voice of a tokenizer and an adapter."""
        stop = frozenset(stop_tokens(tokenizer))
        return cls(tokenizer, adapter, stop, Words.of_tokenizer(tokenizer, stop))

    @property
    def template(self) -> Any:
        """The chat template of the training."""
        return self.tokenizer.chat_template

    def constraint(self, grammar: str) -> Constraint:
        """What keeps an answer to a grammar."""
        return self.words.constraint(grammar)

    def term(self, text: str) -> str:
        """How a grammar writes a text that may be a token of its own."""
        return self.words.term(text)

    def chat(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> tuple[int, ...]:
        """By the chat template, as in training.

        Raises:
            DataError: the template refuses, or there is none.
        """
        try:
            offered = parse_tools(tools)
            with _lock:
                return tuple(
                    render_prompt([dict(m) for m in messages], self.tokenizer, tools=offered)
                )
        except RowError as error:
            raise DataError(str(error)) from error

    def text(self, prompt: str) -> tuple[int, ...]:
        """The tokenizer's own tokens, with its begin token."""
        with _lock:
            return tuple(self.tokenizer(prompt).input_ids)


def require_name(name: str) -> str:
    """``name``, if it can be asked for.

    Raises:
        ConfigError: it has characters that do not belong into a name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the name {name!r}: expected letters, digits, dots, dashes and underscores, such as "
            "--adapter orders=runs/orders"
        )
    return name

"""Answers along a grammar, by llguidance: a JSON schema (`response_format`) or a forced tool call.

At each step the library says which tokens keep the answer a beginning of a text of the grammar. All
others get the probability 0; where the text is complete, the end token is allowed. Spaces are
those of Python's `json.dumps`, so that an answer cannot go on with white space for ever.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import DataError, ResourceError
from graftlm.models.llama_cpp import LlamaCpp

__all__ = ["NOT_INSTALLED", "WRITTEN", "GrammarConstraint", "Words", "checked", "grammar_of"]

NOT_INSTALLED = (
    "response_format and a tool_choice that forces a call need llguidance on the server: "
    "pip install 'graftlm[serve]'"
)
WRITTEN: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammar_of(schema: dict[str, Any]) -> str:
    """The grammar of the texts that fit ``schema``.

    Raises:
        DataError: the schema is wrong, or has a part that cannot be followed.
        ResourceError: llguidance is not installed.
    """
    return checked(f"start: %json {json.dumps({**schema, 'x-guidance': WRITTEN})}")


def checked(lark: str) -> str:
    """A grammar in Lark, in the form that constraints take.

    Raises:
        DataError: a JSON schema in it is wrong, or has a part that cannot be followed.
        ResourceError: llguidance is not installed.
    """
    if importlib.util.find_spec("llguidance") is None:
        raise ResourceError(NOT_INSTALLED)
    from llguidance import LLMatcher

    grammar: str = LLMatcher.grammar_from_lark(lark)
    problem = LLMatcher.validate_grammar(grammar)
    if problem and not problem.startswith("WARNING"):
        raise DataError(f"the JSON schema cannot be followed: {problem.splitlines()[0]}")
    return grammar


class Words:
    """The tokens of one tokenizer as llguidance sees them, made on first use (about a second).

    Args:
        make: makes them.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None
        self._lock = threading.Lock()

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, ends: frozenset[int]) -> Words:
        """Those of a tokenizer of transformers, with the tokens that end an answer."""

        def make() -> Any:
            from llguidance.hf import from_tokenizer

            try:
                return from_tokenizer(tokenizer, eos_token=sorted(ends))
            except ValueError as error:
                raise DataError(f"with this tokenizer, {error}") from error

        return cls(make)

    @classmethod
    def of_llama(cls, model: LlamaCpp) -> Words:
        """Those of a file in llama.cpp."""

        def make() -> Any:
            from llguidance.llamacpp import lltokenizer_from_vocab

            ends = [token for token in range(model.vocabulary) if model.ends(token)]
            return lltokenizer_from_vocab(model.words, eos_token=ends)

        return cls(make)

    def constraint(self, grammar: str) -> GrammarConstraint:
        """A constraint at the beginning of an answer."""
        from llguidance import LLMatcher

        return GrammarConstraint(LLMatcher(self._words(), grammar, log_level=0))

    def term(self, text: str) -> str:
        """How a grammar writes ``text``: as a token of its own, if it is one; else as letters.

        llguidance takes an added token such as ``<tool_call>`` for a special one, which is no text.
        """
        words = self._words()
        tokens = words.tokenize_str(text)
        alone = len(tokens) == 1 and words.is_special_token(tokens[0])
        return text if alone else json.dumps(text)

    def _words(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


class GrammarConstraint:
    """One answer on its way along a grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self) -> Tensor:
        """The tokens that may come next, (n,) bool.

        Raises:
            DataError: the grammar became too complex.
        """
        bias: bytes = self._matcher.compute_logit_bias()
        self._require_sound()
        return torch.frombuffer(bytearray(bias), dtype=torch.uint8) > 0

    def take(self, token: int) -> None:
        """Go on after ``token``."""
        self._matcher.consume_token(token)
        self._require_sound()

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise DataError(f"the form cannot be followed: {self._matcher.get_error()}")

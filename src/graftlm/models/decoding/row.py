"""One answer that is being written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from graftlm.models.decoding.choice import Sampling
from graftlm.models.decoding.constraint import Constraint
from graftlm.models.decoding.text import GrowingText

__all__ = ["Ask", "Row"]

GREEDY = Sampling()


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is asked of the decoder.

    Attributes:
        ids: the prompt's tokens.
        max_new_tokens: the longest answer.
        sampling: how tokens are chosen.
        stop: tokens that end the answer, besides the model's own.
        stop_texts: texts that end the answer and are not part of it.
        adapter: whose answer it is; ``None``: of the model as it is.
        constraint: which tokens may come; it follows this answer only.
        enough: tells from the text so far that the rest of the answer does not matter.
    """

    ids: tuple[int, ...]
    max_new_tokens: int = 200
    sampling: Sampling = GREEDY
    stop: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    adapter: str | None = None
    constraint: Constraint | None = None
    enough: Callable[[str], bool] | None = None


class Row:
    """An answer while it grows.

    Attributes:
        ask: what was asked.
        new: the tokens so far, without one that ended the answer.
        text: the text so far.
        tokens: tokens generated, the end token included.
        reason: ``stop``, ``length`` or ``enough`` when the answer is complete, else ``None``.
        reused: tokens of the prompt whose keys and values were known already.
        error: what went wrong, if the row could not be continued.
        piece: the text that the last step added.
    """

    def __init__(self, ask: Ask, tokenizer: Any, room: int) -> None:
        self.ask = ask
        self.new: list[int] = []
        self.tokens = 0
        self.reason: str | None = None
        self.reused = 0
        self.error: Exception | None = None
        self.piece = ""
        self.room = min(ask.max_new_tokens, room)
        self.generator = torch.Generator()
        self.generator.manual_seed(ask.sampling.seed % 2**63)
        self._text = GrowingText(tokenizer, ask.stop_texts)

    @property
    def text(self) -> str:
        """The text so far."""
        return self._text.given

    @property
    def all_ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.ask.ids, *self.new]

    def take(self, token: int, ends: frozenset[int]) -> None:
        """Add a token, and decide whether the answer is complete."""
        self.tokens += 1
        self.piece = ""
        if token in ends or token in self.ask.stop:
            self.reason = "stop"
        else:
            self.new.append(token)
            self.piece = self._text.push([token])
            if self._text.stopped:
                self.reason = "stop"
            elif self.tokens >= self.room:
                self.reason = "length"
            elif self.ask.enough is not None and self.ask.enough(self.text):
                self.reason = "enough"
        if self.reason is not None:
            self.piece += self._text.end()

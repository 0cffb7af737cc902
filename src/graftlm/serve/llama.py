"""A GGUF file served by llama.cpp: one answer after another, in the engine's protocol."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graftlm.errors import DataError
from graftlm.models.decoding.constraint import Constraint
from graftlm.models.decoding.row import Ask, Row
from graftlm.models.llama_cpp import LlamaCpp
from graftlm.serve.structured import Words

__all__ = ["LlamaVoice", "LlamaWriter"]


class LlamaVoice:
    """The name of a GGUF file.

    Args:
        model: the file, opened.
    """

    adapter: str | None = None
    stop: frozenset[int] = frozenset()

    def __init__(self, model: LlamaCpp) -> None:
        self.model = model
        self._words = Words.of_llama(model)

    @property
    def template(self) -> str | None:
        """The file's chat template."""
        return self.model.template

    def constraint(self, grammar: str) -> Constraint:
        """What keeps an answer to a grammar."""
        return self._words.constraint(grammar)

    def term(self, text: str) -> str:
        """How a grammar writes a text that may be a token of its own."""
        return self._words.term(text)

    def chat(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> tuple[int, ...]:
        """By the file's chat template.

        Raises:
            DataError: the template refuses, or there is none.
        """
        return tuple(self.model.prompt([dict(message) for message in messages], tools))

    def text(self, prompt: str) -> tuple[int, ...]:
        """The file's own tokens."""
        return tuple(self.model.tokens(prompt))


class LlamaWriter:
    """Continues rows in the order in which they came.

    Args:
        model: the file, opened.
    """

    def __init__(self, model: LlamaCpp) -> None:
        self.model = model
        self._rows: deque[Row] = deque()
        self._tokens: Iterator[int] | None = None

    @property
    def busy(self) -> bool:
        """Whether a row is left."""
        return bool(self._rows)

    def add(self, ask: Ask) -> Row:
        """Queue an answer.

        Raises:
            DataError: the prompt is empty, or leaves no room for an answer.
        """
        room = self.model.context - len(ask.ids)
        if room <= 0 or not ask.ids:
            raise DataError(
                f"the prompt has {len(ask.ids):,} tokens; there is room for 1 to "
                f"{self.model.context - 1:,}"
            )
        if not 0 <= min(ask.ids) <= max(ask.ids) < self.model.vocabulary:
            raise DataError(f"the prompt's tokens go from 0 to {self.model.vocabulary - 1:,}")
        self._rows.append(Row(ask, self.model, room))
        return self._rows[-1]

    def step(self) -> list[Row]:
        """A token more for the first row."""
        while self._rows and self._rows[0].reason is not None:
            self._rows.popleft()
            self._tokens = None
        if not self._rows:
            return []
        row = self._rows[0]
        if self._tokens is None:
            chosen = row.ask.sampling
            self._tokens = self.model.continued(
                list(row.ask.ids), chosen.temperature, chosen.top_p, chosen.seed, row.ask.constraint
            )
        try:
            token = next(self._tokens)
        except DataError as error:  # the constraint of this row
            row.error, row.reason = error, "error"
            return [row]
        row.take(token, frozenset({token} if self.model.ends(token) else ()))
        return [row]

    def cancel(self, row: Row) -> None:
        """Stop writing an answer."""
        if row.reason is None:
            row.reason = "cancelled"

    def fail(self, error: Exception) -> list[Row]:
        """Give up all rows."""
        rows = list(self._rows)
        for row in rows:
            if row.reason is None:
                row.error, row.reason = error, "error"
        self._rows.clear()
        self._tokens = None
        return rows

    def close(self) -> None:
        """Free the model's memory."""
        self.model.close()

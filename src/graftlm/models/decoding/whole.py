"""Answers of models that cannot share a cache between rows, one after another and each at once."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

import torch

from graftlm.errors import DataError
from graftlm.models.capabilities import capabilities
from graftlm.models.decoding.decoder import Decoder, UseAdapters
from graftlm.models.decoding.ends import end_tokens, room_after
from graftlm.models.decoding.row import Ask, Row
from graftlm.models.generate import continue_ids

__all__ = ["WholeAnswers", "writer_for"]


class WholeAnswers:
    """Has the methods of `Decoder`; a step writes a whole answer, by transformers.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: the model's.
        use_adapters: makes a row use its adapter, as of `Decoder`.
    """

    def __init__(self, model: Any, tokenizer: Any, use_adapters: UseAdapters | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._use_adapters = use_adapters
        self.ends = frozenset(end_tokens(model, tokenizer))
        self._rows: deque[Row] = deque()

    @property
    def busy(self) -> bool:
        """Whether a row waits."""
        return bool(self._rows)

    def add(self, ask: Ask) -> Row:
        """Queue an answer.

        Raises:
            DataError: the prompt leaves no room, or asks for a nucleus or a form.
        """
        if ask.constraint is not None:
            raise DataError(
                f"response_format or tool_choice: {type(self.model).__name__} is continued "
                "without a form here"
            )
        if ask.sampling.top_p < 1:
            raise DataError(f"top_p: {type(self.model).__name__} is sampled without it here")
        self._rows.append(Row(ask, self.tokenizer, room_after(self.model, len(ask.ids))))
        return self._rows[-1]

    def step(self) -> list[Row]:
        """Write the next answer."""
        waiting = [row for row in self._rows if row.reason is None]
        self._rows = deque(waiting[1:])
        if not waiting:
            return []
        row = waiting[0]
        use = self._use_adapters
        adapter = contextlib.nullcontext() if use is None else use([row.ask.adapter], 1)
        with torch.inference_mode(), adapter:
            [ids] = continue_ids(
                self.model,
                [row.ask.ids],
                self.ends | row.ask.stop,
                max_new_tokens=row.room,
                temperature=row.ask.sampling.temperature,
                seed=row.ask.sampling.seed,
            )
        pieces = []
        for token in ids:
            row.take(token, self.ends)
            pieces.append(row.piece)
            if row.reason is not None:
                break
        row.piece = "".join(pieces)
        row.reason = row.reason or "length"
        return [row]

    def cancel(self, row: Row) -> None:
        """Do not write an answer that waits."""
        row.reason = row.reason or "cancelled"

    def fail(self, error: Exception) -> list[Row]:
        """Give up all rows."""
        rows = [row for row in self._rows if row.reason is None]
        for row in rows:
            row.error, row.reason = error, "error"
        self._rows.clear()
        return rows

    def close(self) -> None:
        """Drop all rows."""
        self._rows.clear()


def writer_for(
    model: Any,
    tokenizer: Any,
    use_adapters: UseAdapters | None = None,
    mixed: bool = True,
) -> Decoder | WholeAnswers:
    """What writes the answers of ``model``: row by row if it can; arguments as of `Decoder`."""
    if capabilities(model).continues_rows:
        return Decoder(model, tokenizer, use_adapters=use_adapters, mixed=mixed)
    return WholeAnswers(model, tokenizer, use_adapters)

"""Continues many rows at once: each step adds one token to every row.

    waiting → prompt read, alone or with others of its length → in the batch → complete

Rows join and leave between two steps (continuous batching, Orca, OSDI 2022), so that no row waits
for another to end. All rows share the columns of one cache and end at its last column. Each has its
own adapter, sampling, stop texts and random generator. A row's answer is what it is alone, but for
the rounding of sums in another order.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import DataError, ModelError
from graftlm.models.capabilities import capabilities
from graftlm.models.decoding.choice import most_probable, sampled
from graftlm.models.decoding.constraint import only
from graftlm.models.decoding.ends import end_tokens, room_after
from graftlm.models.decoding.forward import Forward
from graftlm.models.decoding.linears import put_in, take_out
from graftlm.models.decoding.prefixes import Prefixes
from graftlm.models.decoding.row import Ask, Row
from graftlm.models.decoding.row_cache import KeysAndValues

__all__ = ["Decoder", "UseAdapters"]

UseAdapters = Callable[[Sequence[str | None], int], AbstractContextManager[None]]
"""Makes each row of the next pass use its adapter: (adapter of each row, tokens of each row)."""
MOST_ROWS = 32
"""With more rows, reading the weights is no longer what a step waits for."""
PROMPT_TOKENS = 1024
"""Prompt tokens that are read in one pass."""
PREFIX_BYTES = 256 * 2**20


class Decoder:
    """Writes the answers of a model.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: the model's.
        use_adapters: makes each row use its adapter; without it, all rows use the active ones.
        mixed: whether rows with different adapters can be in one batch.
        most_rows: rows that are continued at once; others wait.
        prefix_bytes: memory for the keys and values of earlier answers; 0: none are kept.

    Raises:
        ModelError: the model cannot continue rows of different lengths.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        use_adapters: UseAdapters | None = None,
        mixed: bool = True,
        most_rows: int = MOST_ROWS,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        if not capabilities(model).continues_rows:
            raise ModelError(f"{type(model).__name__} cannot continue several rows with a cache")
        self.model, self.tokenizer = model, tokenizer
        self.ends = frozenset(end_tokens(model, tokenizer))
        self.most_rows = most_rows
        self._forward = Forward(model)
        self._use_adapters, self._mixed = use_adapters, mixed
        self._prefixes = Prefixes(prefix_bytes)
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        self._starts: list[int] = []  # the first column of each row
        self._tokens: list[int] = []  # the newest token of each row, not yet read
        self._cache = self._forward.cache()
        self._replaced = put_in(model)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop all rows and give the model its own layers back."""
        self.clear()
        take_out(self.model, self._replaced)
        self._replaced = []

    @property
    def busy(self) -> bool:
        """Whether a row waits or is being continued."""
        return bool(self._rows or self._waiting)

    def add(self, ask: Ask) -> Row:
        """Queue an answer; `step` writes it.

        Raises:
            DataError: the prompt is empty, has unknown tokens, or leaves no position.
        """
        row = Row(ask, self.tokenizer, room_after(self.model, len(ask.ids)))
        words = int(self.model.get_input_embeddings().num_embeddings)
        if not ask.ids or not 0 <= min(ask.ids) <= max(ask.ids) < words:
            raise DataError(f"the prompt needs at least one token, each from 0 to {words - 1:,}")
        self._waiting.append(row)
        return row

    def cancel(self, row: Row) -> None:
        """Stop writing an answer; it keeps what it has."""
        if row.reason is None:
            row.reason = "cancelled"
        if row in self._waiting:
            self._waiting.remove(row)

    def step(self) -> list[Row]:
        """Admit rows that wait, add a token to every row; those that got one.

        Every row gets its first token in the step that admits it.
        """
        with torch.inference_mode():
            self._drop_complete()
            continued = list(self._rows)
            if self._rows:
                self._continue()
            admitted = self._admit()
            self._drop_complete()
        return continued + admitted

    def fail(self, error: Exception) -> list[Row]:
        """Give up all rows because a step failed; the rows."""
        rows = [*self._rows, *self._waiting]
        for row in rows:
            if row.reason is None:
                row.error, row.reason = error, "error"
        self.clear()
        return rows

    def run(self, asks: Sequence[Ask]) -> list[Row]:
        """Write all of these answers."""
        rows = [self.add(ask) for ask in asks]
        while any(row.reason is None and row.error is None for row in rows):
            self.step()
        for row in rows:
            if row.error is not None:
                raise row.error
        return rows

    def stream(self, ask: Ask) -> Iterator[Row]:
        """Write one answer; yields its row after each token."""
        row = self.add(ask)
        try:
            while row.reason is None:
                self.step()
                if row.error is not None:
                    raise row.error
                yield row
        finally:
            self.cancel(row)

    def clear(self) -> None:
        """Forget earlier answers and drop all rows."""
        self._prefixes.clear()
        self._waiting.clear()
        self._rows, self._starts, self._tokens = [], [], []
        self._cache = self._forward.cache()

    def _continue(self) -> None:
        """One token more for every row of the batch."""
        ids = torch.tensor(self._tokens)[:, None]
        length = self._cache.length
        with self._adapters(self._rows, 1):
            logits = self._forward(ids, self._cache, self._starts, length)
        for place, token in enumerate(self._chosen(logits, self._rows)):
            self._tokens[place] = token
            if self._rows[place].reason is None:
                self._rows[place].take(token, self.ends)

    def _admit(self) -> list[Row]:
        """Read the prompts of rows that wait, while there is room."""
        new: list[Row] = []
        for row in list(self._waiting):
            if len(self._rows) + len(new) >= self.most_rows:
                break
            beside = next(iter(self._rows or new), row)
            if self._mixed or row.ask.adapter == beside.ask.adapter:
                self._waiting.remove(row)
                new.append(row)
        for group, prefix in self._groups(new):
            try:
                caches, tokens = self._read(group, prefix)
            except Exception as error:
                for row in group:
                    row.error, row.reason = error, "error"
                continue
            before = self._cache.length
            self._cache.add(caches)
            self._starts = [start + self._cache.length - before for start in self._starts]
            for row, token in zip(group, tokens, strict=True):
                self._rows.append(row)
                self._starts.append(self._cache.length - len(row.ask.ids))
                self._tokens.append(token)
                if row.reason is None:
                    row.take(token, self.ends)
        return new

    def _groups(
        self, rows: Sequence[Row]
    ) -> Iterator[tuple[list[Row], tuple[int, KeysAndValues] | None]]:
        """Rows whose prompts are read in one pass, and what is known of the prompt already."""
        fresh = []
        for row in rows:
            known = self._prefixes.find(row.ask.adapter, row.ask.ids)
            if known is not None:
                row.reused = known[0]
                yield [row], known
            else:
                fresh.append(row)
        group: list[Row] = []
        for row in sorted(fresh, key=lambda row: len(row.ask.ids)):
            longest = len(row.ask.ids)
            if group and (len(group) + 1) * longest > PROMPT_TOKENS:
                yield group, None
                group = []
            group.append(row)
        if group:
            yield group, None

    def _read(
        self, rows: list[Row], prefix: tuple[int, KeysAndValues] | None
    ) -> tuple[list[KeysAndValues], list[int]]:
        """The caches of some prompts, and the first token of each answer."""
        cache, known = self._forward.cache(), 0
        if prefix is not None:
            known = prefix[0]
            cache.add([prefix[1]])
        longest = max(len(row.ask.ids) for row in rows)
        starts = [longest - len(row.ask.ids) for row in rows]
        padding = min(self.ends, default=0)
        ids = torch.tensor(
            [[padding] * start + list(row.ask.ids) for row, start in zip(rows, starts, strict=True)]
        )
        for at in range(known, longest, PROMPT_TOKENS):  # more than once only for a row alone
            piece = ids[:, at : at + PROMPT_TOKENS]
            with self._adapters(rows, piece.shape[1]):
                logits = self._forward(piece, cache, starts, at)
        tokens = self._chosen(logits, rows)
        return [cache.of_row(place, start) for place, start in enumerate(starts)], tokens

    def _chosen(self, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        """The next token of each row, from (rows, V). A row that can have none gets an error."""
        tokens = most_probable(logits).tolist()
        for place, row in enumerate(rows):
            ask, line = row.ask, logits[place]
            try:
                if ask.constraint is not None:
                    line = only(line, ask.constraint.allowed())
                    tokens[place] = int(most_probable(line[None]))
                if ask.sampling.temperature > 0:
                    tokens[place] = sampled(line, ask.sampling, row.generator)
                if ask.constraint is not None:
                    ask.constraint.take(tokens[place])
            except DataError as error:
                row.error, row.reason = error, "error"
        return tokens

    def _adapters(self, rows: Sequence[Row], tokens: int) -> AbstractContextManager[None]:
        if self._use_adapters is None:
            return contextlib.nullcontext()
        return self._use_adapters([row.ask.adapter for row in rows], tokens)

    def _drop_complete(self) -> None:
        """Take complete rows out of the batch, and keep what the next turn may begin with."""
        left = [place for place, row in enumerate(self._rows) if row.reason is None]
        if len(left) == len(self._rows):
            return
        for place, row in enumerate(self._rows):
            if row.reason is not None and self._prefixes.most_bytes:
                # The newest token is not in the cache yet.
                ids = tuple(row.all_ids)[: self._cache.length - self._starts[place]]
                end = self._starts[place] + len(ids)
                kept = self._cache.of_row(place, self._starts[place], end)
                self._prefixes.keep(row.ask.adapter, ids, kept)
        first = min((self._starts[place] for place in left), default=0)
        if left:
            self._cache.keep(left, first)
        else:
            self._cache = self._forward.cache()
        self._rows = [self._rows[place] for place in left]
        self._starts = [self._starts[place] - first for place in left]
        self._tokens = [self._tokens[place] for place in left]

"""The thread that decodes: requests come in, pieces of text go out.

The model is used by one thread only. Requests of all connections are rows of one decoder, so that a
step serves them all.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from graftlm.models.decoding.row import Ask, Row

__all__ = ["Engine", "Piece", "Writer"]

log = logging.getLogger("graftlm.serve")


class Writer(Protocol):
    """What continues rows: `Decoder`, or llama.cpp."""

    @property
    def busy(self) -> bool:
        """Whether a row waits or is being continued."""

    def add(self, ask: Ask) -> Row:
        """Queue an answer."""

    def step(self) -> list[Row]:
        """Add a token to every row; the rows that got one."""

    def cancel(self, row: Row) -> None:
        """Stop writing an answer."""

    def fail(self, error: Exception) -> list[Row]:
        """Give up all rows."""

    def close(self) -> None:
        """Give everything back."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a step added to an answer.

    Attributes:
        text: the new text; may be empty.
        reason: why the answer ended: ``stop``, ``length``, ``cancelled``, ``error``; else ``None``.
        tokens: tokens of the answer so far.
        reused: tokens of the prompt that did not have to be read.
        error: what went wrong.
    """

    text: str
    reason: str | None
    tokens: int
    reused: int
    error: Exception | None = None


Deliver = Callable[[Piece], None]


class Engine:
    """Decodes in a thread of its own.

    Args:
        writer: continues the rows.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._orders: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._deliver: dict[Row, Deliver] = {}
        self._thread = threading.Thread(target=self._work, name="graftlm-decoder", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask, deliver: Deliver) -> Callable[[], None]:
        """Answer ``ask``; ``deliver`` is called in this engine's thread. Returns how to cancel."""
        row: list[Row] = []

        def start() -> None:
            try:
                row.append(self.writer.add(ask))
                self._deliver[row[0]] = deliver
            except Exception as error:  # the asker is told
                deliver(Piece("", "error", 0, 0, error))

        def cancel() -> None:
            if row and self._deliver.pop(row[0], None) is not None:
                self.writer.cancel(row[0])

        self._orders.put(start)
        return lambda: self._orders.put(cancel)

    def close(self) -> None:
        """End the thread; rows that are not complete are dropped."""
        self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                order = self._orders.get(block=not self.writer.busy)
                if order is None:
                    break
                order()
                continue  # all orders first
            except queue.Empty:
                pass
            self._step()
        self.writer.close()

    def _step(self) -> None:
        try:
            rows = self.writer.step()
        except Exception as error:  # every asker is told, and the engine goes on
            log.exception("a decoding step failed")
            rows = self.writer.fail(error)
        for row in rows:
            deliver = self._deliver.get(row)
            if deliver is None:
                continue
            if row.reason is not None:
                del self._deliver[row]
            if row.piece or row.reason is not None:
                deliver(Piece(row.piece, row.reason, row.tokens, row.reused, row.error))

"""Ends a connection whose client does not finish the header of its request, or takes no answer.

uvicorn waits for both without a limit, so a client could hold all connections by sending nothing,
or by reading nothing: a connection that is closed waits until its last byte is taken.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["patient"]


def patient(header_seconds: float, send_seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol with time limits.

    Args:
        header_seconds: for the header of a request.
        send_seconds: in which a client takes no byte of what waits for it.
    """
    settings = {"header_seconds": header_seconds, "send_seconds": send_seconds}
    return type("Patient", (_Patient,), settings)


class _Patient(H11Protocol):
    """Closes a connection whose request does not begin or whose header does not end in time.

    It aborts one whose client takes nothing for a time, so that what waits for it is dropped.
    """

    header_seconds: float
    send_seconds: float
    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing pauses while a byte waits
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()
        self.resume_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect(self._waiting())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _waiting(self) -> int:
        """The bytes that the client has not taken."""
        return self.transport.get_write_buffer_size()

    def _expect(self, before: int) -> None:
        """Look again later whether the client has taken some of ``before`` bytes."""
        self._stuck = self.loop.call_later(self.send_seconds, self._look, before)

    def _look(self, before: int) -> None:
        if self._waiting() < before:
            self._expect(self._waiting())
        else:
            self.transport.abort()

    def _watch(self) -> None:
        """Start the clock while no request is complete; one that runs is not set back."""
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(self.header_seconds, self.transport.close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

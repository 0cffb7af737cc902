"""Ends a connection whose client does not finish the header of its request.

uvicorn waits for it without a limit, so a client could hold all connections by sending nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["patient"]


def patient(seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol with a time limit for the header of a request."""
    return type("Patient", (_Patient,), {"seconds": seconds})


class _Patient(H11Protocol):
    """Closes a connection whose request does not begin or whose header does not end in time."""

    seconds: float
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        """Start the clock while no request is complete; one that runs is not set back."""
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(self.seconds, self.transport.close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

"""Runs the application under uvicorn, with a time limit on the header of a request."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from graftlm.serve.guard import Limits

__all__ = ["server_for"]


class _Patient(H11Protocol):
    """Closes a connection whose request does not begin or whose header does not end in time."""

    seconds = 15.0
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


def server_for(app: ASGIApp, host: str, port: int, limits: Limits) -> uvicorn.Server:
    """A server that has not started; port 0 takes a free one."""
    protocol = type("Patient", (_Patient,), {"seconds": limits.header_seconds})
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(limits.header_seconds) or 1,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)

"""Runs the application under uvicorn, with time limits on what a client sends and takes."""

from __future__ import annotations

import uvicorn
from starlette.types import ASGIApp

from graftlm.serve.guard import Limits
from graftlm.serve.patience import patient

__all__ = ["server_for"]


def server_for(app: ASGIApp, host: str, port: int, limits: Limits) -> uvicorn.Server:
    """A server that has not started; port 0 takes a free one."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=patient(limits.header_seconds, limits.send_seconds),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(limits.header_seconds) or 1,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)

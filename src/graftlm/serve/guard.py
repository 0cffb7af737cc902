"""Who may ask, how much, and how slowly: a layer around the whole application.

- A request for another host is refused while the server listens on this machine only: a page of
  another site could otherwise reach it under its own name (DNS rebinding).
- A request from a page of another origin is refused, and no header allows one (CORS stays closed).
- With a key, every request needs it.
- A body is at most so large, and has to arrive in time. (That an answer is read in time is seen to
  by `patience.py`.)
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graftlm.serve.requests import RefusedError

__all__ = ["Guard", "Limits", "is_local"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client may take.

    Attributes:
        body_bytes: the largest body.
        body_seconds: in which a body has to arrive.
        send_seconds: in which a client has to take something of the answer that waits for it.
        header_seconds: in which the header of a request has to arrive.
        requests: unanswered requests at once.
        new_tokens: the longest answer.
    """

    body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    header_seconds: float = 15.0
    requests: int = 256
    new_tokens: int = 2048


def is_local(host: str) -> bool:
    """Whether an address is this machine's own only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses what must not reach the application.

    Args:
        app: the application.
        local: whether the server listens on this machine only.
        key: the key that every request needs; ``None``: none.
        limits: see `Limits`.
    """

    def __init__(self, app: ASGIApp, local: bool, key: str | None, limits: Limits) -> None:
        self.app, self.local, self.key, self.limits = app, local, key, limits
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        self._open += 1
        try:
            self._check(Headers(scope=scope), scope["method"])
            body = await asyncio.wait_for(self.whole_body(receive), self.limits.body_seconds)
        except (RefusedError, asyncio.TimeoutError) as error:
            if not isinstance(error, RefusedError):
                error = RefusedError(
                    408, f"the body did not arrive within {self.limits.body_seconds:g} s"
                )
            answer = JSONResponse(error.tree(), error.status, {"connection": "close"})
            await answer(scope, receive, guarded)
            return
        else:
            await self.app(scope, _with_body(body, receive), guarded)
        finally:
            self._open -= 1

    def _check(self, headers: Mapping[str, str], method: str) -> None:
        host = headers.get("host", "")
        if self.local and not is_local(urlsplit(f"//{host}").hostname or ""):
            raise RefusedError(403, f"this server answers on this machine only, not as {host!r}")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RefusedError(403, f"requests from pages of another origin are refused: {origin}")
        if self.key is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                raise RefusedError(
                    401,
                    "a key is needed: send it as 'Authorization: Bearer KEY'",
                    "authentication_error",
                    code="invalid_api_key",
                )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind != "application/json":
            raise RefusedError(415, f"content-type {kind!r}: expected application/json")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > self.limits.body_bytes:
            raise self._too_large()
        if self._open > self.limits.requests:
            raise RefusedError(
                429,
                f"{self.limits.requests} requests wait already; try again later",
                "rate_limit_error",
            )

    async def whole_body(self, receive: Receive) -> bytes:
        """The body of a request.

        Raises:
            RefusedError: it is too large.
        """
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"a body has at most {self.limits.body_bytes:,} bytes")


def _with_body(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, and then what the client does."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again

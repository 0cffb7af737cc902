"""Who may ask, and how much: the outermost layer of the server.

| request                                  | answer |
|------------------------------------------|--------|
| Host is not one of ours (DNS rebinding)  | 421    |
| Origin or Sec-Fetch-Site of another page | 403    |
| /api without the token                   | 401    |
| a body over the limit                    | 413    |
| a body that stands still                 | 408    |
| a client that takes no piece for 60 s    | ended  |

The token is in the `Authorization` header, not in a cookie: a browser sends cookies of 127.0.0.1 to
every port, and with requests that other pages cause. The page itself holds no secret and needs no
token.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

__all__ = ["HEADERS", "TAKE_SECONDS", "Guard"]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer. Scripts come from this server alone, so text from rows or models never runs."""

_MOST_BYTES = 1 << 20
_STILL_SECONDS = 20.0
TAKE_SECONDS = 60.0


class Guard:
    """Asks each request for its host, origin, token and size before the application sees it.

    Args:
        app: the application.
        hosts: the ``name:port`` that the server answers to.
        token: the token of the API.
        still_seconds: how long a body may stand still.
        take_seconds: in which a client has to take each piece of an answer.
    """

    def __init__(
        self,
        app: App,
        hosts: Collection[str],
        token: str,
        still_seconds: float = _STILL_SECONDS,
        take_seconds: float = TAKE_SECONDS,
    ) -> None:
        self._app, self._hosts = app, frozenset(hosts)
        self._token = token.encode()
        self._still_seconds, self._take_seconds = still_seconds, take_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        sent = _with_headers(self._patient(send))
        headers = {name.lower(): value for name, value in scope["headers"]}
        problem = self._problem(scope["path"], headers)
        if problem is not None:
            await _refuse(sent, *problem)
            return
        upload = scope["path"].startswith("/api/uploads/")
        await self._app(scope, self._bounded(receive, None if upload else _MOST_BYTES), sent)

    def _problem(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if host not in self._hosts:
            return 421, "this server does not answer to that name"
        origin = headers.get(b"origin")
        ours = {f"http://{name}".encode() for name in self._hosts}
        if (origin is not None and origin.lower() not in ours) or headers.get(
            b"sec-fetch-site", b"none"
        ) not in (b"none", b"same-origin"):
            # A link to the page from elsewhere is harmless; nothing else from there is.
            leads_here = headers.get(b"sec-fetch-mode") == b"navigate" and path == "/"
            if origin is not None or not leads_here:
                return 403, "requests of other pages are refused"
        if path.startswith("/api") and not self._has_token(headers):
            return 401, "the token is missing or wrong: open the link that `graftlm studio` prints"
        return None

    def _has_token(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)

    def _bounded(self, receive: Receive, limit: int | None) -> Receive:
        received, whole = 0, False

        async def bounded() -> Message:
            nonlocal received, whole
            if whole:  # the next message is the end of the connection, whenever that is
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._still_seconds)
            except asyncio.TimeoutError:  # another class than the built-in before Python 3.11
                raise HTTPException(408, "the request stood still for too long") from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if limit is not None and received > limit:
                    raise HTTPException(413, f"a request may have {limit:,} bytes")
            return message

        return bounded

    def _patient(self, send: Send) -> Send:
        """Gives up a client that stands still; the chat would wait for it for ever."""

        async def sent(message: Message) -> None:
            await asyncio.wait_for(send(message), self._take_seconds)

        return sent


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message.get("headers", [])}
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            added = [pair for pair in ours if pair[0] not in given]
            message["headers"] = [*message.get("headers", []), *added]
        await send(message)

    return sent


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

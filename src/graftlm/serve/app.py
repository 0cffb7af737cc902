"""The endpoint: `/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/health`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from graftlm.errors import GraftLMError, printable
from graftlm.models.decoding.row import Ask
from graftlm.serve.engine import Engine, Piece
from graftlm.serve.forms import forms_asked
from graftlm.serve.guard import Guard, Limits
from graftlm.serve.replies import ChatReply, Reply, event
from graftlm.serve.requests import ChatRequest, CompletionRequest, RefusedError, parsed
from graftlm.serve.tool_calls import reader_for
from graftlm.serve.voices import Voice

__all__ = ["application"]

log = logging.getLogger("graftlm.serve")
LISTEN_SECONDS = 1.0
"""How often a client that waits for a whole answer is asked whether it is still there."""


class _Answering:
    """One or more answers on their way from the engine to a client."""

    def __init__(self, engine: Engine, asks: list[Ask]) -> None:
        loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.left = len(asks)

        def deliver_to(index: int) -> Any:
            def deliver(piece: Piece) -> None:
                with contextlib.suppress(RuntimeError):  # the loop ends before the engine
                    loop.call_soon_threadsafe(self.pieces.put_nowait, (index, piece))

            return deliver

        self._cancel = [engine.submit(ask, deliver_to(n)) for n, ask in enumerate(asks)]

    async def next(self) -> tuple[int, Piece]:
        """The next piece, and of which answer.

        Raises:
            RefusedError: the answer cannot be written.
        """
        index, piece = await self.pieces.get()
        if piece.error is not None:
            raise _refusal(piece.error)
        self.left -= piece.reason is not None
        return index, piece

    def close(self) -> None:
        """Stop what is not complete."""
        for cancel in self._cancel:
            cancel()


class _Endpoint:
    def __init__(
        self, engine: Engine, voices: Mapping[str, Voice], limits: Limits, positions: int | None
    ) -> None:
        self.engine, self.voices, self.limits, self.positions = engine, voices, limits, positions
        self.since = int(time.time())

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        every = [self._model(name) for name in self.voices]
        return JSONResponse({"object": "list", "data": every})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._voice(name)
        return JSONResponse(self._model(name))

    async def chat(self, request: Request) -> Response:
        asked: ChatRequest = parsed(ChatRequest, await request.body())
        voice = self._voice(asked.model)
        try:
            ids = await run_in_threadpool(voice.chat, asked.messages, asked.offered)
        except GraftLMError as error:
            raise RefusedError(400, str(error), parameter="messages") from error
        read = reader_for(voice.template, asked.offered) if asked.offered else None
        reply = ChatReply(asked.model, len(ids), read)
        return await self._answer(request, asked, voice, [ids], reply)

    async def complete(self, request: Request) -> Response:
        asked: CompletionRequest = parsed(CompletionRequest, await request.body())
        voice = self._voice(asked.model)
        prompt: Any = asked.prompt
        if isinstance(prompt, list) and all(isinstance(part, int) for part in prompt):
            prompts = [tuple(prompt)]
        else:
            texts = [prompt] if isinstance(prompt, str) else prompt
            prompts = [await run_in_threadpool(voice.text, text) for text in texts]
        reply = Reply(asked.model, sum(map(len, prompts)))
        return await self._answer(request, asked, voice, prompts, reply)

    async def _answer(
        self,
        request: Request,
        asked: ChatRequest | CompletionRequest,
        voice: Voice,
        prompts: list[tuple[int, ...]],
        reply: Reply,
    ) -> Response:
        longest = asked.longest or self.limits.new_tokens
        if longest > self.limits.new_tokens:
            raise RefusedError(
                400, f"max_tokens: at most {self.limits.new_tokens:,} here", parameter="max_tokens"
            )
        if not 1 <= len(prompts) <= self.limits.requests:
            raise RefusedError(400, f"prompt: 1 to {self.limits.requests} of them")
        for ids in prompts:
            longest = min(longest, self._room(ids))
        forms = await run_in_threadpool(forms_asked, asked, voice, len(prompts))
        asks = [
            Ask(ids, longest, asked.sampling, voice.stop, asked.stops, voice.adapter, form)
            for ids, form in zip(prompts, forms, strict=True)
        ]
        answering = _Answering(self.engine, asks)
        if asked.stream:
            counted = asked.stream_options is not None and asked.stream_options.include_usage
            try:  # what fails at once gets a status of its own
                first = await answering.next()
            except BaseException:
                answering.close()
                raise
            events = _events(first, answering, reply, len(asks), counted)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            return JSONResponse(await _whole(answering, reply, len(asks), request))
        finally:
            answering.close()

    def _room(self, ids: tuple[int, ...]) -> int:
        """The longest answer to a prompt."""
        if self.positions is None:
            return self.limits.new_tokens
        if len(ids) >= self.positions:
            raise RefusedError(
                400,
                f"the prompt has {len(ids):,} tokens; prompt and answer have {self.positions:,}",
                code="context_length_exceeded",
            )
        return self.positions - len(ids)

    def _voice(self, name: str) -> Voice:
        if name not in self.voices:
            raise RefusedError(
                404,
                f"there is no model {printable(name[:100])!r}; there are {', '.join(self.voices)}",
                parameter="model",
                code="model_not_found",
            )
        return self.voices[name]

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.since, "owned_by": "graftlm"}


async def _whole(
    answering: _Answering, reply: Reply, count: int, request: Request
) -> dict[str, Any]:
    texts = [""] * count
    ends: dict[int, Piece] = {}
    while answering.left:
        try:
            index, piece = await asyncio.wait_for(answering.next(), LISTEN_SECONDS)
        except asyncio.TimeoutError:
            if await request.is_disconnected():
                raise RefusedError(499, "the client left") from None
            continue
        texts[index] += piece.text
        if piece.reason is not None:
            ends[index] = piece
    return reply.whole(texts, [ends[n] for n in range(count)])


async def _events(
    first: tuple[int, Piece], answering: _Answering, reply: Reply, count: int, counted: bool
) -> AsyncIterator[bytes]:
    try:
        for index in range(count):
            for tree in reply.opening(index):
                yield event(tree)
        ends = []
        come: tuple[int, Piece] | None = first
        while come is not None:
            index, piece = come
            for tree in reply.piece(index, piece):
                yield event(tree)
            if piece.reason is not None:
                ends.append(piece)
            come = await answering.next() if answering.left else None
        if counted:
            yield event(reply.closing(ends))
        yield event("[DONE]")
    except RefusedError as error:  # the status is sent already
        yield event(error.tree())
    finally:
        answering.close()


def _refusal(error: Exception) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, GraftLMError):
        return RefusedError(400, str(error))
    return RefusedError(
        500, "the answer could not be written; the server's log says why", "server_error"
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return JSONResponse(error.tree(), error.status)


async def _missed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "/v1/models, /v1/chat/completions, /v1/completions, /health"
    refused = RefusedError(error.status_code, f"{error.detail}; there are {known}")
    return JSONResponse(refused.tree(), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    refused = RefusedError(500, "the request failed; the server's log says why", "server_error")
    return JSONResponse(refused.tree(), 500)


def application(
    engine: Engine,
    voices: Mapping[str, Voice],
    *,
    local: bool = True,
    key: str | None = None,
    limits: Limits | None = None,
    positions: int | None = None,
) -> ASGIApp:
    """The application.

    Args:
        engine: writes the answers.
        voices: what can be asked for, by name.
        local: whether the server listens on this machine only.
        key: the key that every request needs.
        limits: what one client may take.
        positions: tokens of prompt and answer together; ``None``: any number.
    """
    limits = limits or Limits()
    endpoint = _Endpoint(engine, voices, limits, positions)
    app = Starlette(
        routes=[
            Route("/health", endpoint.health),
            Route("/v1/models", endpoint.models),
            Route("/v1/models/{name}", endpoint.model),
            Route("/v1/chat/completions", endpoint.chat, methods=["POST"]),
            Route("/v1/completions", endpoint.complete, methods=["POST"]),
        ],
        exception_handlers={RefusedError: _refused, HTTPException: _missed, Exception: _failed},
    )
    return Guard(app, local, key, limits)

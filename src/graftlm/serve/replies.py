"""The JSON objects of OpenAI's protocol, whole and in pieces."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

from graftlm.serve.engine import Piece
from graftlm.serve.tool_calls import Reader

__all__ = ["ChatReply", "Reply", "event"]


def event(tree: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


class Reply:
    """The reply to one `/v1/completions` request.

    Args:
        model: the name that was asked for.
        prompt_tokens: tokens of the prompts.
    """

    kind = "text_completion"
    piece_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model, self.prompt_tokens = model, prompt_tokens

    def whole(self, texts: list[str], ends: list[Piece]) -> dict[str, Any]:
        """All answers at once."""
        choices = [self.choice(n, t, e) for n, (t, e) in enumerate(zip(texts, ends, strict=True))]
        return {**self._head(self.kind), "choices": choices, "usage": self.usage(ends)}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What comes before the first piece of an answer."""
        return []

    def piece(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """What a step added to an answer."""
        return [{**self._head(self.piece_kind), "choices": [self.choice(index, piece.text, piece)]}]

    def closing(self, ends: list[Piece]) -> dict[str, Any]:
        """The counts, after the last piece, for a client that asks for them."""
        return {**self._head(self.piece_kind), "choices": [], "usage": self.usage(ends)}

    def choice(self, index: int, text: str, end: Piece) -> dict[str, Any]:
        """One answer."""
        return {"index": index, "text": text, "finish_reason": end.reason, "logprobs": None}

    def usage(self, ends: list[Piece]) -> dict[str, Any]:
        """The counts of tokens."""
        written = sum(end.tokens for end in ends)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
            "prompt_tokens_details": {"cached_tokens": sum(end.reused for end in ends)},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class ChatReply(Reply):
    """The reply to one `/v1/chat/completions` request.

    Args:
        model: the name that was asked for.
        prompt_tokens: tokens of the prompt.
        read: makes what takes tool calls out of an answer; ``None``: there are none.
    """

    kind = "chat.completion"
    piece_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(
        self, model: str, prompt_tokens: int, read: Callable[[], Reader] | None = None
    ) -> None:
        super().__init__(model, prompt_tokens)
        self._read = read
        self._readers: dict[int, Reader] = {}
        self._called: dict[int, int] = {}

    def choice(self, index: int, text: str, end: Piece) -> dict[str, Any]:
        """One answer."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        reason = end.reason
        if self._read is not None:
            reader = self._read()
            said, calls = reader.push(text)
            last, more = reader.end()
            said, calls = said + last, calls + more
            if calls:
                message |= {"content": said or None, "tool_calls": [call.tree() for call in calls]}
                reason = _reason(reason)
        return {"index": index, "message": message, "finish_reason": reason, "logprobs": None}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The role."""
        return [self._delta(index, {"role": "assistant", "content": ""}, None)]

    def piece(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """The new text, the calls that are complete, and then the reason of the end."""
        text, found = piece.text, []
        if self._read is not None:
            reader = self._readers.setdefault(index, self._read())
            text, calls = reader.push(text)
            if piece.reason is not None:
                last, more = reader.end()
                text, calls = text + last, calls + more
            for call in calls:
                number = self._called.get(index, 0)
                self._called[index] = number + 1
                found.append(
                    self._delta(index, {"tool_calls": [{"index": number, **call.tree()}]}, None)
                )
        if text:
            found.insert(0, self._delta(index, {"content": text}, None))
        if piece.reason is not None:
            reason = _reason(piece.reason) if self._called.get(index) else piece.reason
            found.append(self._delta(index, {}, reason))
        return found

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._head(self.piece_kind), "choices": [choice]}


def _reason(reason: str | None) -> str | None:
    """Why an answer with calls ended."""
    return "tool_calls" if reason == "stop" else reason

"""Tool calls, taken out of an answer's text where the chat template's form of them is known.

    Hermes, Qwen   <tool_call>{"name": "book", "arguments": {"for": 2}}</tool_call>, any number
    Llama 3        the whole answer is {"name": "book", "parameters": {"for": 2}}

Of other forms, and where the text is no such call after all, the text stays the answer.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Protocol

__all__ = ["Call", "Reader", "reader_for"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
OTHER_TAGS = ("<function=", "<arg_key>")
"""Forms inside the same tags that are not JSON (Qwen3-Coder, GLM)."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        name: of the function.
        arguments: as JSON text.
        id: made up here; the answer to the call names it.
    """

    name: str
    arguments: str
    id: str = dataclasses.field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def tree(self) -> dict[str, Any]:
        """OpenAI's JSON object for it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class Reader(Protocol):
    """Reads one answer as it comes."""

    def push(self, text: str) -> tuple[str, list[Call]]:
        """The text that is surely no part of a call, and the calls that are complete."""

    def end(self) -> tuple[str, list[Call]]:
        """What is left at the end of the answer."""


def reader_for(template: Any, tools: Iterable[Any]) -> Callable[[], Reader] | None:
    """What reads the answers to a request with these tools; ``None`` if the form is not known."""
    if not isinstance(template, str):
        return None
    if OPEN in template and "arguments" in template:
        return None if any(tag in template for tag in OTHER_TAGS) else TaggedCalls
    if "parameters" in template and "ipython" in template:
        names = {tool.get("function", tool).get("name") for tool in tools}
        return lambda: WholeCalls(names)
    return None


class TaggedCalls:
    """Calls between tags, with text before, between and behind them."""

    def __init__(self) -> None:
        self._waiting = ""
        self._inside = self._called = False

    def push(self, text: str) -> tuple[str, list[Call]]:
        """The text outside the tags, without the white space around calls; and the calls."""
        self._waiting += text
        said, calls = "", []
        while True:
            before, tag, behind = self._waiting.partition(CLOSE if self._inside else OPEN)
            if not tag:
                break
            if not self._inside:
                said += self._text(before.rstrip())
            elif (call := _call(before)) is not None:
                calls.append(call)
                self._called = True
            else:
                said += OPEN + before + CLOSE
            self._inside, self._waiting = not self._inside, behind
        if not self._inside:
            sure = before[: len(before) - _possible(before)].rstrip()
            self._waiting = before[len(sure) :]
            said += self._text(sure)
        return said, calls

    def end(self) -> tuple[str, list[Call]]:
        """A call whose last tag the end token replaced counts; what is none is text."""
        left, self._waiting = self._waiting, ""
        if self._inside:
            call = _call(left)
            return ("", [call]) if call is not None else (OPEN + left, [])
        return (left.strip() if self._called else left), []

    def _text(self, text: str) -> str:
        return text.lstrip() if self._called else text


class WholeCalls:
    """An answer that is nothing but calls, one after another with ``;`` between them.

    Args:
        names: of the functions that were offered; JSON that calls no other is text.
    """

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self._waiting = ""
        self._is_text = False

    def push(self, text: str) -> tuple[str, list[Call]]:
        """All text, unless the answer begins as an object."""
        self._waiting += text
        start = self._waiting.lstrip()
        self._is_text = self._is_text or (bool(start) and not start.startswith("{"))
        if not self._is_text:
            return "", []
        said, self._waiting = self._waiting, ""
        return said, []

    def end(self) -> tuple[str, list[Call]]:
        """The calls, or the text if it is not made of calls."""
        left, self._waiting = self._waiting, ""
        calls, rest = [], left.strip()
        while rest:
            try:
                tree, length = json.JSONDecoder().raw_decode(rest)
            except (ValueError, RecursionError):
                return left, []
            call = _call_of(tree)
            if call is None or call.name not in self.names:
                return left, []
            calls.append(call)
            rest = rest[length:].lstrip("; \n")
        return ("", calls) if calls else (left, [])


def _call(text: str) -> Call | None:
    try:
        return _call_of(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _call_of(tree: Any) -> Call | None:
    if not isinstance(tree, dict) or not isinstance(tree.get("name"), str):
        return None
    arguments = tree.get("arguments", tree.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return Call(tree["name"], json.dumps(arguments, ensure_ascii=False))


def _possible(text: str) -> int:
    """Length of the longest end of ``text`` that may become the tag of a call."""
    lengths = range(min(len(OPEN) - 1, len(text)), 0, -1)
    return next((n for n in lengths if OPEN.startswith(text[-n:])), 0)

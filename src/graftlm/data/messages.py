"""Checking and normalising the messages of a conversation.

The result is what chat templates expect: ``{"role", "content": str, ...}`` with OpenAI-style
``tool_calls`` whose arguments are objects. In addition, each message has a flag that says whether
it may be learned: assistant messages may, unless they have ``train: false`` or ``weight: 0``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from graftlm.errors import near_matches, printable

__all__ = ["Arguments", "RowError", "parse_messages", "parse_tools", "shown", "text_of"]

_USUAL = {"role", "from", "content", "value"}
_MEDIA = ("image", "images", "audio", "audios", "video", "videos", "input_audio", "file", "files")

_OF_CALL = {
    *("name", "arguments", "function", "type"),
    *("id", "index", "call_id", "status", "description", "extra_content", "thought_signature"),
}
"""Fields of a call: what is learned of it, and remarks."""
_NOT_LEARNED = ("loss", "loss_weight", "loss_mask", "training", "trainable", "train_on_turn")
"""Fields by which other tools leave a message out of the loss, where they are 0 or false."""
_MASKED = ("mask", "masked", "train_detail", "train_details")
"""Likewise, where they are anything else."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "function_call",
}


class RowError(ValueError):
    """A problem with one row; the caller adds the position of the row."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Arguments(dict[str, Any]):
    """The arguments of a tool call as an object that keeps its original text.

    Attributes:
        text: the row's own JSON text, for templates that concatenate text.
    """

    def __init__(self, value: Mapping[str, Any], text: str | None = None) -> None:
        super().__init__(value)
        self.text = json.dumps(value, ensure_ascii=False) if text is None else text


def shown(value: Any) -> str:
    """The beginning of any value, for messages."""
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= 40 else text[:40] + "..."


def parse_messages(value: Any, column: str) -> tuple[tuple[dict[str, Any], ...], tuple[bool, ...]]:
    """Messages with keys ``role``/``content`` or ShareGPT's ``from``/``value``.

    Returns:
        The normalised messages and, for each, whether it may be learned.
    """
    if not isinstance(value, list | tuple):
        raise RowError(f"{column} is {type(value).__name__}, expected a list of messages")
    if not value:
        raise RowError(f"{column} is empty, expected at least one message")
    messages: list[dict[str, Any]] = []
    learn: list[bool] = []
    for number, item in enumerate(value):
        message, learned = _message(item, f"{column}[{number}]")
        messages.append(message)
        learn.append(learned)
    return tuple(messages), tuple(learn)


def _message(item: Any, where: str) -> tuple[dict[str, Any], bool]:
    if not isinstance(item, Mapping):
        raise RowError(f"{where} is {type(item).__name__}, expected {{role, content}}")
    given = item.get("role", item.get("from"))
    if given is None:
        raise RowError(f"{where} has {', '.join(map(str, item))}; expected role and content")
    role = _ROLES.get(str(given).strip().lower())
    if role is None:
        hint = near_matches(str(given).lower(), _ROLES)
        raise RowError(
            f"{where} has the role {given!r}, expected system, user, assistant or tool{hint}"
        )
    _require_json({k: v for k, v in item.items() if k not in _USUAL}, where, default=str)
    if media := [key for key in _MEDIA if item.get(key)]:
        raise RowError(f"{where} holds {media[0]}; graftlm trains on text only")
    content = item.get("content", item.get("value"))
    if isinstance(value := item.get("value"), str) and value != content:
        raise RowError(f"{where} has content and value, and they differ; expected one")
    if _ROLES.get(str(item.get("from")).strip().lower(), role) != role:
        raise RowError(f"{where} has role and from, and they differ; expected one")
    skipped = {"role", "from", "content", "value", "train", "weight", "tool_calls", "function_call"}
    message = {k: v for k, v in item.items() if k not in skipped and v is not None}
    if role == "function_call":
        call = _object(content, f"{where}.value")
        message["tool_calls"] = [_tool_call(call, where)]
        return {"role": "assistant", "content": "", **message}, _learned(item, "assistant", where)
    calls = item.get("tool_calls")
    if not calls and item.get("function_call"):  # OpenAI's older name for a single call
        calls = [item["function_call"]]
    elif calls and item.get("function_call"):
        raise RowError(f"{where} has tool_calls and function_call, expected one of them")
    if calls:
        if not isinstance(calls, list | tuple):
            raise RowError(f"{where}.tool_calls is {type(calls).__name__}, expected a list")
        message["tool_calls"] = [_tool_call(call, f"{where}.tool_calls") for call in calls]
    if content is None:
        if not calls:
            raise RowError(f"{where} ({role}) has no content, expected text")
        content = ""
    text = text_of(content, f"{where}.content")
    return {"role": role, "content": text, **message}, _learned(item, role, where)


def _learned(item: Mapping[str, Any], role: str, where: str) -> bool:
    for field in (*_NOT_LEARNED, *_MASKED):
        value = item.get(field)
        if value is not None and (bool(value) if field in _MASKED else value in (0, False)):
            raise RowError(
                f"{where}.{field} is {shown(value)}, which graftlm does not read; an answer that "
                "is not to be learned says train: false"
            )
    weight = item.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RowError(
            f"{where}.weight is {shown(weight)}, expected 0 or 1: an answer is learned or not. "
            "To have rows count more or less, put them in a file of their own and set data.train: "
            "{file: weight, ...}"
        )
    train = item.get("train")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"{where}.train is {shown(train)}, expected true or false")
    if train and role != "assistant":
        raise RowError(f"{where} asks to train on a {role} message; only answers are learned")
    return role == "assistant" and train is not False and weight != 0


def text_of(value: Any, where: str) -> str:
    """A string, or the joined parts of a content list; refuses parts that are not text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "".join(_part(part, where) for part in value)
    raise RowError(f"{where} is {type(value).__name__} ({shown(value)}), expected text")


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        raise RowError(f"{where} is a list of texts ({shown(part)}, ...), expected one text")
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        if media := [key for key in _MEDIA if part.get(key)]:
            raise RowError(f"{where} has a part with {media[0]}; graftlm trains on text only")
        text = part.get("text")
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RowError(f"{where} has a part of type {kind!r}, expected text only")


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise RowError(f"{where} holds {type(call).__name__}, expected {{name, arguments}}")
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{where} has no function name, expected {{name, arguments}}")
    for part in (call, function):
        if other := [key for key, value in part.items() if key not in _OF_CALL and value]:
            raise RowError(
                f"{where} holds a call with {other[0]} ({shown(part[other[0]])}), expected name "
                "and arguments"
            )
    given = function.get("arguments") or {}
    arguments = Arguments(
        _object(given, f"{where}.arguments"), given if isinstance(given, str) else None
    )
    rest = {k: v for k, v in call.items() if k in ("id", "index") and v is not None}
    named = {"name": function["name"], "arguments": arguments}
    return {"type": "function", **rest, "function": named}


def _object(value: Any, where: str) -> dict[str, Any]:
    """An object, also if it is a string of JSON, as in OpenAI's interface."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{where} is not valid JSON ({error}): {value[:40]!r}") from None
    if not isinstance(value, Mapping):
        raise RowError(f"{where} is {type(value).__name__}, expected an object")
    _require_json(value, where)
    return dict(value)


def _require_json(value: Any, where: str, default: Callable[[Any], Any] | None = None) -> None:
    """Refuse values that JSON cannot express: NaN, infinite or very long numbers, Python objects.

    Args:
        value: any value.
        where: its position in the row.
        default: converts values that JSON has no form for; if given, NaN and infinity pass too.
    """
    try:
        json.dumps(value, allow_nan=default is not None, default=default)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"{where} cannot be written as JSON: {error}") from None


def parse_tools(value: Any) -> list[Any] | None:
    """The ``tools`` column: a list of JSON schemas, or that list as a string."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"tools is not valid JSON ({error}): {value[:40]!r}") from None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError("tools is not a list of objects; expected JSON schemas of functions")
    _require_json(value, "tools")
    return list(value) or None

"""Finds the content that a chat template omits from a conversation.

Many templates omit the thoughts of earlier turns; some omit a system message, tools, or unknown
fields. Omitted content is not learned. So each field is searched in the rendered text: the fields
of an answer in its own turn, all others anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from graftlm.data.turns import Located

__all__ = ["dropped_parts"]

_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thoughts", "thought")
_PLACED = {"role", "content", "tool_calls"}
_MARKS_OF_THOUGHT = ("</think>", "</thinking>", "</thought>", "</reasoning>")


def dropped_parts(
    messages: list[dict[str, Any]], tools: Any, located: Located
) -> tuple[tuple[str, str], ...]:
    """Kinds of findings, each with the missing content.

    Args:
        messages: the input of the template.
        tools: JSON schemas of functions.
        located: the output of the template.
    """
    found: list[tuple[str, str]] = []
    turns = iter(located.turns)
    for number, message in enumerate(messages):
        is_answer = message["role"] == "assistant"
        start, end = next(turns) if is_answer else (0, len(located.text))
        where = f"messages[{number}]"
        if is_answer and located.verbatim:
            continue  # it has only content, which is known to be in the text
        shown = located.text[start:end]
        if not _holds(shown, message["content"]):
            kind = _kind_of_loss(message["content"], shown) if is_answer else "message_dropped"
            found.append((kind, f"{where} ({message['role']})"))
        found += [
            ("answer_dropped", f"{where}: the argument {value[:40]!r} of a call")
            for value in _arguments(message)
            if not _holds(shown, value) and not _holds(shown, json.dumps(value)[1:-1])
        ]
        for field, value in message.items():
            texts = _leaves(value) if isinstance(value, Mapping | list | tuple) else [value]
            gone = [text for text in texts if isinstance(text, str) and not _holds(shown, text)]
            if field in _PLACED or not gone:
                continue
            kind = "thoughts_dropped" if field in _THOUGHTS else "fields_dropped"
            found.append((kind, f"{where}.{field}"))
    names = _names(tools or ())
    if tools and not (names and all(_holds(located.text, name) for name in names)):
        found.append(("tools_dropped", "the tools"))
    return tuple(dict(found).items())


def _kind_of_loss(content: str, shown: str) -> str:
    """Whether only the thoughts of an answer are missing, or the answer itself."""
    for mark in _MARKS_OF_THOUGHT:
        if mark in content and _holds(shown, content.rpartition(mark)[2]):
            return "thoughts_dropped"
    return "answer_dropped"


def _holds(text: str, part: str) -> bool:
    """Whether a text contains a part, ignoring spaces."""
    wanted = part.strip()
    return wanted in text or "".join(wanted.split()) in "".join(text.split())


def _arguments(message: Mapping[str, Any]) -> Iterator[str]:
    """The texts and numbers in the arguments of a message's calls."""
    for call in message.get("tool_calls") or ():
        given = call["function"]["arguments"]
        yield from _leaves(json.loads(given) if isinstance(given, str) else given)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str) and value.strip():
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)


def _names(tools: Any) -> list[str]:
    functions = [tool.get("function", tool) for tool in tools]
    return [str(f["name"]) for f in functions if isinstance(f, Mapping) and f.get("name")]

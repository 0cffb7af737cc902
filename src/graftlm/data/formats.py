"""From a raw row to one of three kinds: a conversation, a prompt with its completion, or a text.

Formats are recognised by their columns, never guessed. A row that fits no format is refused; the
message gives the closest format and the ``data.columns`` setting that would make the row fit.

========== ===========================================================================
messages   ``{"messages": [{"role", "content", "tool_calls"?, "train"?}], "tools"?, "system"?}``
sharegpt   ``{"conversations": [{"from", "value"}], "system"?, "tools"?}``
completion ``{"prompt", "completion"}``, two strings or two lists of messages
alpaca     ``{"instruction", "input"?, "output", "system"?, "history"?}``
dolly      ``{"instruction", "context"?, "response"}``
text       ``{"text"}``
========== ===========================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from graftlm.data.columns import (
    FORMATS,
    SYSTEM,
    names_of,
    require_understood,
    resolve_name,
    suggestion,
)
from graftlm.data.messages import RowError, parse_messages, parse_tools, text_of

__all__ = ["Row", "RowError", "parse_row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One recognised row. A chat has ``messages``, the other kinds have strings."""

    kind: Literal["chat", "completion", "text"]
    format: str
    messages: tuple[dict[str, Any], ...] = ()
    learn: tuple[bool, ...] = ()
    """For each message, whether it is an answer that may be learned."""
    tools: list[Any] | None = None
    prompt: str = ""
    completion: str = ""
    """The answer; for a text row, the text."""
    unused: tuple[str, ...] = ()
    """Columns that have content and are not learned from."""

    def content_hash(self) -> int:
        """64-bit hash of the row's content, without columns that are not learned from."""
        content = (self.kind, self.messages, self.learn, self.tools, self.prompt, self.completion)
        data = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str).encode()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def parse_row(
    value: Any,
    columns: Mapping[str, str] | None = None,
    *,
    format: Literal["plain", "chat"] = "plain",
    ignore: Collection[str] = (),
) -> Row:
    """Recognise one raw row.

    Args:
        value: the value from the source, normally a mapping of columns.
        columns: ``{our name: the data's name}``.
        format: the use of a prompt and a completion that are strings: ``plain`` text, or a question
            and an answer as turns of a ``chat``.
        ignore: columns to ignore, although they would change the row's meaning.

    Raises:
        RowError: the row fits no format, is malformed, or has an unusable column that changes its
            meaning.
    """
    if not isinstance(value, Mapping):
        raise RowError(f"found {_kind_of(value)}, expected an object with named columns")
    row = _renamed(value, columns) if columns else dict(value)
    for column in ("messages", "conversations"):
        if isinstance(row.get(column), str):  # a table's cell
            row[column] = _json_list(row[column], column)
    for name, needed in _in_order(columns):
        if all(row.get(column) is not None for column in needed):
            # The parser adds to this set of used names.
            used = set(needed)
            parsed = _PARSERS[name](row, used, format == "chat")
            return dataclasses.replace(parsed, unused=require_understood(row, used, ignore))
    raise RowError(_unrecognised(row))


def _renamed(value: Mapping[Any, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with our names for its columns; all are renamed at once, so two may swap."""
    found = {ours: resolve_name(ours, theirs, value) for ours, theirs in columns.items()}
    rest = {name: item for name, item in value.items() if name not in found.values()}
    return rest | {ours: value[theirs] for ours, theirs in found.items()}


def _in_order(columns: Mapping[str, str] | None) -> Iterable[tuple[str, tuple[str, ...]]]:
    """The formats to try: first those whose columns the user named."""
    if not columns:
        return FORMATS.items()
    return sorted(FORMATS.items(), key=lambda item: not set(item[1]) & columns.keys())


def _json_list(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowError(f"{column} is str, expected a list of messages, or that as JSON") from None


def _messages(row: dict[str, Any], used: set[str], chat: bool) -> Row:
    messages, learn = parse_messages(row["messages"], "messages")
    return _chat(row, used, "messages", messages, learn)


def _sharegpt(row: dict[str, Any], used: set[str], chat: bool) -> Row:
    messages, learn = parse_messages(row["conversations"], "conversations")
    return _chat(row, used, "sharegpt", messages, learn)


def _completion(row: dict[str, Any], used: set[str], chat: bool) -> Row:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        before, _ = parse_messages(prompt, "prompt")
        after, learn = parse_messages(completion, "completion")
        learned = (False,) * len(before) + learn
        return _chat(row, used, "completion", before + after, learned)
    if isinstance(prompt, list) != isinstance(completion, list):
        raise RowError(
            f"prompt is {_kind_of(prompt)} and completion {_kind_of(completion)}; expected two "
            "strings or two lists of messages"
        )
    question, answer = text_of(prompt, "prompt"), text_of(completion, "completion")
    if chat:
        return _question(row, used, "completion", question, answer)
    return Row("completion", "completion", prompt=question, completion=answer)


def _alpaca(row: dict[str, Any], used: set[str], chat: bool) -> Row:
    question = _with(row, used, text_of(row["instruction"], "instruction"), "input")
    return _question(row, used, "alpaca", question, text_of(row["output"], "output"))


def _dolly(row: dict[str, Any], used: set[str], chat: bool) -> Row:
    question = _with(row, used, text_of(row["instruction"], "instruction"), "context")
    return _question(row, used, "dolly", question, text_of(row["response"], "response"))


def _text(row: dict[str, Any], used: set[str], chat: bool) -> Row:
    return Row("text", "text", completion=text_of(row["text"], "text"))


_PARSERS = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "completion": _completion,
    "alpaca": _alpaca,
    "dolly": _dolly,
    "text": _text,
}


def _with(row: Mapping[str, Any], used: set[str], question: str, column: str) -> str:
    """The question, with its context if the row has one."""
    used.add(column)
    return question + "\n\n" + text_of(row[column], column) if row.get(column) else question


def _question(row: Mapping[str, Any], used: set[str], name: str, question: str, answer: str) -> Row:
    """A chat of one question and one answer, after the turns in ``history``."""
    messages = _history(row.get("history"))
    learn = tuple(message["role"] == "assistant" for message in messages)
    used.add("history")
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return _chat(row, used, name, (*messages, *turns), (*learn, False, True))


def _history(value: Any) -> tuple[dict[str, Any], ...]:
    """Earlier turns, as LLaMA-Factory writes them: ``[[question, answer], ...]``."""
    if not value:
        return ()
    pairs = _json_list(value, "history") if isinstance(value, str) else value
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise RowError("history is not a list of [question, answer] pairs")
    return tuple(
        {"role": role, "content": text_of(text, f"history[{number}]")}
        for number, pair in enumerate(pairs)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    )


def _chat(
    row: Mapping[str, Any],
    used: set[str],
    name: str,
    messages: tuple[dict[str, Any], ...],
    learn: tuple[bool, ...],
) -> Row:
    """A conversation, with the row's system message and tools."""
    used |= {*SYSTEM, "tools", "functions"}
    given = [column for column in SYSTEM if row.get(column)]
    if len(given) > 1:
        raise RowError(f"{' and '.join(given)} both hold a system message, expected one")
    if given:
        text = text_of(row[given[0]], given[0])
        if messages[0]["role"] == "system" and messages[0]["content"] != text:
            raise RowError(
                f"the column {given[0]} and the first message are two different system messages, "
                "expected one"
            )
        if messages[0]["role"] != "system":
            messages, learn = ({"role": "system", "content": text}, *messages), (False, *learn)
    tools = parse_tools(row.get("tools"))
    if functions := parse_tools(row.get("functions")):  # OpenAI's older name
        if tools:
            raise RowError("tools and functions both hold tools, expected one of them")
        tools = [{"type": "function", "function": function} for function in functions]
    return Row("chat", name, messages, learn, tools)


def _unrecognised(row: dict[str, Any]) -> str:
    if not row:
        return "the row is empty; expected columns such as prompt and completion"
    if "chosen" in row or "preferred_output" in row:
        return (
            "chosen/rejected is preference data, which graftlm does not train on; keep the chosen "
            "answers as prompt/completion or messages"
        )
    present = {str(key): value for key, value in row.items()}
    for columns in FORMATS.values():
        empty = [c for c in columns if c in present and present[c] is None]
        if empty and all(column in present for column in columns):
            return (
                f"{empty[0]} is null, expected {'a list' if columns[0] == 'messages' else 'text'}"
            )
    return f"found {names_of(row)}; {suggestion(tuple(present))}"


def _kind_of(value: Any) -> str:
    names = {list: "a list", str: "a string", dict: "an object", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")

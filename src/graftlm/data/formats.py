"""From a raw row to one of three kinds: a conversation, a prompt with its completion, or a text.

Formats are recognised by shape, never guessed: a row that fits none is refused with the nearest
format and the ``columns`` setting that would make it fit.

========== ===========================================================================
messages   ``{"messages": [{"role", "content", "tool_calls"?, "train"?}], "tools"?}``
sharegpt   ``{"conversations": [{"from", "value"}], "system"?, "tools"?}``
completion ``{"prompt", "completion"}``, two strings or two lists of messages
alpaca     ``{"instruction", "input"?, "output", "system"?}``
text       ``{"text"}``
========== ===========================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from graftlm.data.messages import RowError, parse_messages, parse_tools, text_of
from graftlm.errors import near_matches

__all__ = ["Row", "RowError", "parse_row"]

_FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
_ALIASES = {
    "prompt": ("question", "query", "input", "instruction", "context", "source"),
    "completion": ("answer", "response", "output", "target", "label", "summary", "reply"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns", "message"),
    "text": ("content", "document", "body", "sentence"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row, recognised. ``messages`` is filled for chats, the strings for the other kinds."""

    kind: Literal["chat", "completion", "text"]
    format: str
    messages: tuple[dict[str, Any], ...] = ()
    learn: tuple[bool, ...] = ()
    """For each message: an answer that may be learned."""
    tools: list[Any] | None = None
    prompt: str = ""
    completion: str = ""
    """The answer; for a text row, the text."""

    def content_hash(self) -> int:
        """64 bits of what the row says; columns that are not learned from do not count."""
        content = (self.kind, self.messages, self.learn, self.tools, self.prompt, self.completion)
        data = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str).encode()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def parse_row(value: Any, columns: Mapping[str, str] | None = None) -> Row:
    """Recognise one raw row.

    Args:
        value: what the source read, normally a mapping of columns.
        columns: ``{our name: the data's name}``.

    Raises:
        RowError: the row fits no format, or is broken inside.
    """
    if not isinstance(value, Mapping):
        raise RowError(f"found {_kind_of(value)}, expected an object with named columns")
    row = _renamed(value, columns) if columns else dict(value)
    for column in ("messages", "conversations"):
        if isinstance(row.get(column), str):  # a table's cell
            row[column] = _json_list(row[column], column)
    for name, needed in _in_order(columns):
        if all(row.get(column) is not None for column in needed):
            parsed = _PARSERS[name](row)
            _require_encodable(parsed)
            return parsed
    raise RowError(_unrecognised(row))


def _renamed(value: Mapping[Any, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with our names for its columns; all are taken at once, so that two may swap."""
    for ours, theirs in columns.items():
        if theirs not in value:
            raise RowError(
                f"columns maps {ours!r} to {theirs!r}, but the row has {_names(value)}"
                + near_matches(theirs, map(str, value))
            )
    rest = {name: item for name, item in value.items() if name not in columns.values()}
    return rest | {ours: value[theirs] for ours, theirs in columns.items()}


def _in_order(columns: Mapping[str, str] | None) -> Iterable[tuple[str, tuple[str, ...]]]:
    """The formats to try: first those whose columns the user named."""
    if not columns:
        return _FORMATS.items()
    return sorted(_FORMATS.items(), key=lambda item: not set(item[1]) & columns.keys())


def _json_list(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise RowError(f"{column} is str, expected a list of messages, or that as JSON") from None


def _messages(row: dict[str, Any]) -> Row:
    messages, learn = parse_messages(row["messages"], "messages")
    return Row("chat", "messages", messages, learn, parse_tools(row.get("tools")))


def _sharegpt(row: dict[str, Any]) -> Row:
    messages, learn = parse_messages(row["conversations"], "conversations")
    if row.get("system"):
        system = {"role": "system", "content": text_of(row["system"], "system")}
        messages, learn = (system, *messages), (False, *learn)
    return Row("chat", "sharegpt", messages, learn, parse_tools(row.get("tools")))


def _completion(row: dict[str, Any]) -> Row:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        before, _ = parse_messages(prompt, "prompt")
        after, learn = parse_messages(completion, "completion")
        learned = (False,) * len(before) + learn
        return Row("chat", "completion", before + after, learned, parse_tools(row.get("tools")))
    if isinstance(prompt, list) != isinstance(completion, list):
        raise RowError(
            f"prompt is {_kind_of(prompt)} and completion {_kind_of(completion)}; expected two "
            "strings or two lists of messages"
        )
    return Row(
        "completion",
        "completion",
        prompt=text_of(prompt, "prompt"),
        completion=text_of(completion, "completion"),
    )


def _alpaca(row: dict[str, Any]) -> Row:
    question = text_of(row["instruction"], "instruction")
    if row.get("input"):
        question += "\n\n" + text_of(row["input"], "input")
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": text_of(row["system"], "system")})
    messages.append({"role": "assistant", "content": text_of(row["output"], "output")})
    learn = (False,) * (len(messages) - 1) + (True,)
    return Row("chat", "alpaca", tuple(messages), learn)


def _text(row: dict[str, Any]) -> Row:
    return Row("text", "text", completion=text_of(row["text"], "text"))


_PARSERS = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "completion": _completion,
    "alpaca": _alpaca,
    "text": _text,
}


def _require_encodable(row: Row) -> None:
    """Half a surrogate pair is no character: no tokenizer can encode it."""
    if row.kind == "chat":
        texts = [m["content"] for m in row.messages if m.get("content")]
    else:
        texts = [row.prompt, row.completion]
    try:
        "\n".join(texts).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.start + 20]
        raise RowError(
            f"{around.encode(errors='replace').decode()!r} holds half a surrogate pair "
            f"(U+{ord(error.object[error.start]):04X}), expected valid Unicode; the file was cut "
            "or converted wrongly"
        ) from None


def _unrecognised(row: dict[str, Any]) -> str:
    if not row:
        return "the row is empty; expected columns such as prompt and completion"
    if "chosen" in row and "rejected" in row:
        return (
            "chosen/rejected is preference data, which graftlm does not train on; keep the chosen "
            "answers as prompt/completion or messages"
        )
    present = {str(key): value for key, value in row.items()}
    for columns in _FORMATS.values():
        empty = [c for c in columns if c in present and present[c] is None]
        if empty and all(column in present for column in columns):
            return (
                f"{empty[0]} is null, expected {'a list' if columns[0] == 'messages' else 'text'}"
            )
    name, mapping = _nearest(present)
    expected = " and ".join(_FORMATS[name])
    advice = ", ".join(f"{ours}: {theirs}" for ours, theirs in mapping.items())
    hint = f" (set columns: {{{advice}}})" if advice else ""
    return f"found {_names(row)}; the nearest format is {name}, which needs {expected}{hint}"


def _nearest(row: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The format that most columns fit, by name or by a usual other name for them."""
    best: tuple[float, str, dict[str, str]] = (-1.0, "completion", {})
    for name, needed in _FORMATS.items():
        mapping: dict[str, str] = {}
        hits = 0.0
        for column in needed:
            if column in row:
                hits += 1
                continue
            lowered = {key.lower(): key for key in row}
            usual = [lowered[a] for a in (column, *_ALIASES.get(column, ())) if a in lowered]
            close = usual or [key for key in row if near_matches(column, [key])]
            close = [key for key in close if key not in mapping.values() and key not in needed]
            if close:
                mapping[column] = close[0]
                hits += 0.9
        score = hits / len(needed) + 0.01 * len(needed)
        if score > best[0]:
            best = (score, name, mapping)
    return best[1], best[2]


def _names(row: Mapping[Any, Any]) -> str:
    shown = [str(key) for key in list(row)[:8]]
    return f"columns {', '.join(shown)}{', ...' if len(row) > 8 else ''}" if row else "no columns"


def _kind_of(value: Any) -> str:
    names = {list: "a list", str: "a string", dict: "an object", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")

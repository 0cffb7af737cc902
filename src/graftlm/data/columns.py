"""The meaning of a row's columns: which ones change the row, and which ones have other names.

An unused column may be a remark (an id, a source), or it may change what the row teaches (an answer
marked as bad, a picture for the question). Columns of the first kind are counted and named; a row
with one of the second kind is refused.
"""

from __future__ import annotations

import difflib
import functools
import json
import shlex
import unicodedata
from collections.abc import Callable, Collection, Mapping
from typing import Any

from graftlm.data.messages import RowError, shown
from graftlm.errors import near_matches

__all__ = ["FORMATS", "SYSTEM", "names_of", "require_understood", "resolve_name", "suggestion"]

FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "dolly": ("instruction", "response"),
    "text": ("text",),
}
"""Format → the columns that a row of it has."""

SYSTEM = ("system", "system_prompt", "system_message")
"""Names of a column with a system message."""

_PROMPT = (
    "prompt question query input instruction context source human user q cau-hoi hoi de-bai "
    "yeu-cau dau-vao tin-nhan noi-dung-hoi khach-hang khach-hoi van-de"
)
_COMPLETION = (
    "completion answer response output target label summary reply assistant bot a tra-loi "
    "cau-tra-loi dap-an phan-hoi ket-qua dau-ra dap loi-giai tu-van giai-dap"
)
_ALIASES = {
    "prompt": tuple(name.replace("-", " ") for name in _PROMPT.split()),
    "completion": tuple(name.replace("-", " ") for name in _COMPLETION.split()),
    "messages": ("messages", "conversation", "dialog", "dialogue", "chat", "turns", "message"),
    "text": ("text", "content", "document", "body", "sentence"),
}
_LOOKED_AT = 30
"""Maximum columns of a row that are compared with known names."""


def _given(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {}


def _unwanted(value: Any) -> bool:
    return value in (False, 0) or (isinstance(value, str) and value.strip().lower() == "false")


def _not_one(value: Any) -> bool:
    try:
        return float(value) != 1
    except (TypeError, ValueError, OverflowError):
        return _given(value)


_PREFERENCE = (
    "is preference data, which graftlm does not train on; keep the wanted answers as "
    "prompt/completion or messages"
)
_MEDIA = "goes with the text, and graftlm trains on text only"
_TOKENS = "holds tokens or masks made elsewhere; graftlm makes its own from text"
_CHANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("chosen", "rejected", "preferred_output", "non_preferred_output"), (_given, _PREFERENCE)
    ),
    **dict.fromkeys(
        ("image", "images", "audio", "audios", "video", "videos", "files"), (_given, _MEDIA)
    ),
    **dict.fromkeys(
        ("input_ids", "labels", "attention_mask", "loss_mask", "assistant_masks"), (_given, _TOKENS)
    ),
    **dict.fromkeys(
        ("weight", "weights", "sample_weight", "loss_weight"),
        (
            _not_one,
            "asks for a row to count more or less; put such rows in a file of their own and set "
            "data.train: {file: weight, ...}",
        ),
    ),
    "label": (_unwanted, "marks an answer that is not wanted; remove the row"),
    "train": (_unwanted, "asks not to train on the row; remove the row"),
    "documents": (_given, "is given to the chat template by other tools; put it into the messages"),
    "chat_template_kwargs": (_given, "changes how the template renders, which is not supported"),
    **dict.fromkeys(
        SYSTEM,
        (
            _given,
            "has no place in plain text; set data.format=chat to train the row as chat turns",
        ),
    ),
    "history": (
        _given,
        "holds earlier turns; put them into messages, or where the row is a prompt and a "
        "completion, set data.format=chat",
    ),
}
"""Column → (whether a value changes what the row means, why it is refused)."""


def require_understood(
    row: Mapping[str, Any], used: Collection[str], ignore: Collection[str]
) -> tuple[str, ...]:
    """Refuse a row if an unused column changes its meaning.

    Args:
        row: columns by name.
        used: the columns that the row's format uses.
        ignore: columns that the user leaves out knowingly (``data.ignore``).

    Returns:
        The columns that have content and are not used.
    """
    unused = [str(n) for n, v in row.items() if n not in used and n not in ignore and _given(v)]
    for name in unused:
        changes, why = _CHANGES.get(name.strip().lower(), (None, ""))
        if changes is not None and changes(row[name]):
            raise RowError(
                f"the column {name} ({shown(row[name])}) {why}. To leave the column out: "
                f"--set 'data.ignore=[{name}]'"
            )
    return tuple(unused)


def normal(name: str) -> str:
    """A column's name without case, diacritics and the choice of `_`, `-` or space."""
    parts = unicodedata.normalize("NFD", name.strip().casefold().replace("đ", "d"))
    letters = "".join(c for c in parts if not unicodedata.combining(c))
    return " ".join(letters.replace("_", " ").replace("-", " ").split())


def resolve_name(ours: str, theirs: str, row: Mapping[Any, Any]) -> str:
    """The row's column with the name ``theirs`` in ``data.columns``, in any Unicode normal form.

    Raises:
        RowError: there is none, or several.
    """
    if theirs in row:
        return theirs
    wanted = unicodedata.normalize("NFC", theirs).strip().casefold()
    same = [
        column
        for column in row
        if unicodedata.normalize("NFC", str(column)).strip().casefold() == wanted
    ]
    if len(same) == 1:
        return str(same[0])
    names = tuple(str(column) for column in list(row)[:_LOOKED_AT])
    raise RowError(
        f"columns maps {ours!r} to {theirs!r}, but the row has {names_of(row)}"
        f"{_near(theirs, names)}"
    )


@functools.lru_cache(maxsize=256)
def _near(name: str, names: tuple[str, ...]) -> str:
    return near_matches(name, names)


def names_of(row: Mapping[Any, Any]) -> str:
    """The row's columns, for a message to people."""
    names = [str(key)[:40] or "(no name)" for key in list(row)[:8]]
    return f"columns {', '.join(names)}{', ...' if len(row) > 8 else ''}" if row else "no columns"


@functools.lru_cache(maxsize=256)
def suggestion(names: tuple[str, ...]) -> str:
    """The format closest to these columns, and the setting that would map them.

    Args:
        names: columns of the row; only the first 30 are used.
    """
    looked_at = [name for name in names[:_LOOKED_AT] if name.strip()]
    name, mapping = _nearest(looked_at)
    needed = FORMATS[name]
    said = f"the nearest format is {name}, which needs {' and '.join(needed)}"
    if sum(column in names or column in mapping for column in needed) == len(needed):
        return said + _use(mapping)
    if len(looked_at) == 2:
        first, second = looked_at
        mapping = {"prompt": first, "completion": second}
        return f"{said}; if {first} is the question and {second} the answer" + _use(mapping)
    missing = {"prompt": "QUESTION", "completion": "ANSWER"}
    return f"{said}; name the two columns to learn from" + _use(missing)


def _use(mapping: Mapping[str, str]) -> str:
    """The setting as it is typed in a shell."""
    if not mapping:
        return ""
    pairs = ", ".join(f"{ours}: {_yaml(theirs)}" for ours, theirs in mapping.items())
    return f" (use --set {shlex.quote(f'data.columns={{{pairs}}}')})"


def _yaml(name: str) -> str:
    return name if name.isascii() and name.isidentifier() else json.dumps(name, ensure_ascii=False)


def _nearest(names: list[str]) -> tuple[str, dict[str, str]]:
    """The format with most matching columns, by their names or common synonyms."""
    best: tuple[float, str, dict[str, str]] = (-1.0, "completion", {})
    by_normal = {normal(name): name for name in reversed(names)}
    for form, needed in FORMATS.items():
        mapping: dict[str, str] = {}
        hits = 0.0
        for column in needed:
            if column in names:
                hits += 1
                continue
            usual = [by_normal[a] for a in _ALIASES.get(column, (column,)) if a in by_normal]
            close = usual or difflib.get_close_matches(column, names, n=3, cutoff=0.5)
            close = [name for name in close if name not in (*mapping.values(), *needed)]
            if close:
                mapping[column] = close[0]
                hits += 0.9 if usual else 0.8
        score = hits / len(needed) + 0.01 * len(needed)
        if score > best[0]:
            best = (score, form, mapping)
    return best[1], best[2]

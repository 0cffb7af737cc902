"""JSON: one object per line, or one array of objects."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from graftlm.data.messages import RowError
from graftlm.data.readers.lines import as_text, byte_lines
from graftlm.data.readers.raw import Raw, json_problem, object_of
from graftlm.errors import DataError

__all__ = ["read_json", "read_jsonl"]

_HOLDERS = ("data", "rows", "examples", "train")
"""Keys under which an object of JSON holds its rows."""
_MAX_JSON = 1 << 30
"""Maximum characters of a ``.json`` file, which is read as a whole."""


def read_jsonl(name: str, file: BinaryIO) -> Iterator[Raw]:
    """One row per line; blank lines are skipped."""
    for number, line in byte_lines(file):
        if isinstance(line, RowError) or not line.isspace():
            yield Raw(name, number, line)


def read_json(name: str, file: BinaryIO) -> Iterator[Raw]:
    """An array of rows, an object that holds one, or lines of JSON under the wrong suffix."""
    with as_text(file) as stream:
        text = stream.read(_MAX_JSON)
    if len(text) == _MAX_JSON:
        raise DataError(
            f"{name} holds more than {_MAX_JSON:,} characters, and a .json file is read as a "
            "whole; write one object a line, as .jsonl"
        )
    if text.lstrip()[:1] == "[":
        yield from _array(name, text)
        return
    try:
        value = json.loads(text, object_pairs_hook=object_of)
    except RowError as error:
        yield Raw(name, 1, error)
        return
    except (ValueError, RecursionError) as error:
        lines = text.splitlines()
        if len(lines) > 1 and lines[0].rstrip().endswith("}"):  # lines of JSON after all
            yield from read_jsonl(name, io.BytesIO(text.encode("utf-8", "surrogatepass")))
        else:
            problem = RowError(f"{json_problem(error)}; expected an array of objects")
            yield Raw(name, getattr(error, "lineno", 1), problem)
        return
    rows: list[Any] = [value]
    notes: tuple[tuple[str, str], ...] = ()
    if isinstance(value, dict):
        key = next((k for k in _HOLDERS if isinstance(value.get(k), list)), None)
        if key is not None:
            rows, notes = value[key], _other_keys(value, key)
    for number, row in enumerate(rows, start=1):
        yield Raw(name, number, row, notes if number == 1 else ())


def _other_keys(value: dict[str, object], key: str) -> tuple[tuple[str, str], ...]:
    """A note if other parts of the file look like rows too, such as a test split."""
    others = [name for name, part in value.items() if name != key and isinstance(part, list)]
    if not others:
        return ()
    return (("parts_left_out", f"the rows under {key!r} are read; {', '.join(others)} are not"),)


def _array(name: str, text: str) -> Iterator[Raw]:
    decoder = json.JSONDecoder(object_pairs_hook=object_of)
    at, line = text.index("[") + 1, 1
    counted = 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line += text.count("\n", counted, at)
        counted = at
        if at < len(text) and text[at] == "]":
            if rest := text[at + 1 :].strip():
                problem = f"found {rest[:40]!r} after the end of the array; expected one array"
                yield Raw(name, line, RowError(problem))
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except RowError as error:
            yield Raw(name, line, error)
            return
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            problem = f"{json_problem(error)}: found {text[at : at + 40]!r}"
            yield Raw(name, line, RowError(f"{problem}; expected an array of objects"))
            return
        yield Raw(name, line, value)

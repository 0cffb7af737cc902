"""How names of modules are matched, as in PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

__all__ = ["endings", "fault", "matches_end", "matching", "pattern_value"]

ValueT = TypeVar("ValueT")


def matching(names: Iterable[str], targets: str | Iterable[str]) -> list[str]:
    """The names that a regular expression matches in full, or whose end is in a list."""
    if isinstance(targets, str):
        pattern = re.compile(targets)
        return [name for name in names if pattern.fullmatch(name)]
    wanted = set(targets)
    return [name for name in names if any(ending in wanted for ending in endings(name))]


def pattern_value(patterns: Mapping[str, ValueT], name: str, default: ValueT) -> ValueT:
    """The value of the first key that matches the end of ``name``, else ``default``."""
    return next((value for key, value in patterns.items() if matches_end(key, name)), default)


def endings(name: str) -> Iterator[str]:
    """``a.b.c`` → ``a.b.c``, ``b.c``, ``c``."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def matches_end(key: str, name: str) -> bool:
    """Whether ``key`` is a regular expression for the end of ``name``, after a dot."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


def fault(expression: str) -> str:
    """Why ``expression`` is not a valid regular expression; empty when it is."""
    try:
        re.compile(expression)
    except re.error as error:
        return str(error)
    return ""

"""Settings as the words of ``--set``: the inverse of reading them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from typing import Any

from graftlm.config.reading import parse_override
from graftlm.config.settings import RunConfig
from graftlm.errors import ConfigError

__all__ = ["overrides"]


def overrides(config: RunConfig, said: Set[str] = frozenset()) -> list[str]:
    """``name=value`` for each setting that is not the default; `parse_override` reads it back.

    Args:
        config: the settings.
        said: names that are left out, such as ``model.name``.
    """
    defaults = dict(_fields(RunConfig()))
    return [
        f"{name}={_yaml(value)}"
        for name, value in _fields(config)
        if name not in said and value != defaults[name]
    ]


def _fields(settings: RunConfig) -> Iterator[tuple[str, Any]]:
    """Each setting by its name in `--set`, in types that JSON has."""
    for name, value in settings.model_dump(mode="json").items():
        if isinstance(value, dict):
            yield from ((f"{name}.{field}", of_field) for field, of_field in value.items())
        else:
            yield name, value


def _yaml(value: Any) -> str:
    """``value`` as `--set` reads it, on one line; text is in quotes only where it must be."""
    if isinstance(value, str) and _is_plain(value):
        return value
    text = json.dumps(value, ensure_ascii=False)  # YAML has no pairs of surrogates
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def _is_plain(text: str) -> bool:
    """Whether YAML reads ``text`` without quotes as itself."""
    try:
        return bool(parse_override(f"name={text}")[1] == text)
    except ConfigError:
        return False

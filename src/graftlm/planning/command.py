"""The `graftlm train` command that runs an option: it sets all that is not the default."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from graftlm.config import RunConfig, parse_override
from graftlm.errors import ConfigError
from graftlm.planning.planner import Option

__all__ = ["command"]


def command(config: RunConfig, option: Option) -> str:
    """The command that trains with ``option``; parsed again, it gives the same settings.

    ``DATA`` stands for the rows if the settings name none.
    """
    settings = option.setting.applied(config)
    words = ["graftlm", "train", "--model", settings.model.name]
    said = {"model.name", "method"}
    if isinstance(settings.data.train, str):
        words += ["--data", settings.data.train or "DATA"]
        said.add("data.train")
    words += ["--method", option.method]
    defaults = dict(_fields(RunConfig()))
    for name, value in _fields(settings):
        if name not in said and value != defaults[name]:
            words += ["--set", f"{name}={_yaml(value)}"]
    return shlex.join(words)


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

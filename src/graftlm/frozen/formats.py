"""The storage formats by name: `model.weight_format`, `load_model(quantize=…)`.

A format comes from this package, from a call of `register_format`, or from an installed package
with an entry point in the group ``graftlm.weight_formats`` (`graftlm.registry`).
"""

from __future__ import annotations

from typing import TypeVar

from graftlm.errors import ConfigError
from graftlm.frozen.weight import FrozenWeight
from graftlm.registry import Registry

__all__ = ["DEFAULT_FORMAT", "format_named", "formats", "register_format"]

FormatT = TypeVar("FormatT", bound=type[FrozenWeight])

DEFAULT_FORMAT = "nf4"
"""The default of `model.weight_format` and `load_model(quantize=…)`."""

RESERVED = ("none", "original")
"""The name, in the commands, for a weight without a format."""

_formats: Registry[type[FrozenWeight]] = Registry(
    "weight format",
    "graftlm.weight_formats",
    "register_format",
    {"int8": "graftlm.frozen.int8_rows", "nf4": "graftlm.frozen.nf4.frozen_nf4"},
)


def register_format(cls: FormatT) -> FormatT:
    """Make a storage format known under ``cls.format``; usable as a class decorator.

    A class of the same module and name may be registered again, as a notebook does.

    Raises:
        ConfigError: another class has this name, or the name is invalid.
    """
    name = getattr(cls, "format", None)
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
        raise ConfigError(
            f"{cls.__name__}.format is {name!r}: expected a name of letters, digits and _, "
            f"such as 'affine4', other than {' and '.join(RESERVED)}"
        )
    _formats.add(name, cls)
    return cls


def formats() -> list[str]:
    """The names of all known formats, sorted."""
    return _formats.names()


def format_named(name: str) -> type[FrozenWeight]:
    """The format known as ``name``.

    Raises:
        ConfigError: there is none; the message lists the known formats.
    """
    return _formats.named(name)

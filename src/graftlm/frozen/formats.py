"""The storage formats by name: `model.weight_format`, `load_model(quantize=…)`.

A format comes from this package, from a call of `register_format`, or from an installed package:

    [project.entry-points."graftlm.weight_formats"]
    affine4 = "my_package.affine4:Affine4"

Only formats of installed packages are available in the commands and the processes that they start.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TypeVar

from graftlm.errors import ConfigError, near_matches
from graftlm.frozen.weight import FrozenWeight

__all__ = ["DEFAULT_FORMAT", "format_named", "formats", "register_format"]

FormatT = TypeVar("FormatT", bound=type[FrozenWeight])

DEFAULT_FORMAT = "nf4"
"""The default of `model.weight_format` and `load_model(quantize=…)`."""

RESERVED = ("none", "original")
"""The name, in the commands, for a weight without a format."""

ENTRY_POINTS = "graftlm.weight_formats"

# Imported when they are asked for, so that a format costs nothing to those who do not use it.
_BUILT_IN = {
    "int8": "graftlm.frozen.int8_rows",
    "nf4": "graftlm.frozen.nf4.frozen_nf4",
}
_registered: dict[str, type[FrozenWeight]] = {}


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
    taken = _registered.get(name)
    owner = (taken.__module__, taken.__qualname__) if taken else (cls.__module__, cls.__qualname__)
    if owner != (cls.__module__, cls.__qualname__) or _BUILT_IN.get(name, owner[0]) != owner[0]:
        raise ConfigError(f"weight format {name!r} is taken; choose another name")
    _registered[name] = cls
    return cls


def formats() -> list[str]:
    """The names of all known formats, sorted."""
    return sorted(_BUILT_IN.keys() | _registered.keys() | _installed().keys())


def format_named(name: str) -> type[FrozenWeight]:
    """The format known as ``name``.

    Raises:
        ConfigError: there is none; the message lists the known formats.
    """
    if name not in _registered:
        if name in _BUILT_IN:
            importlib.import_module(_BUILT_IN[name])
        elif name in (installed := _installed()):
            register_format(installed[name].load())
    if name not in _registered:
        raise ConfigError(
            f"weight format {name!r} is not registered: expected one of {', '.join(formats())}"
            f"{near_matches(str(name), formats())}. A format of your own is registered by "
            "graftlm.extend.register_format before it is used."
        )
    return _registered[name]


def _installed() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}

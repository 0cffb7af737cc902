"""Sizes as text: `6GB`, `512MiB`, `800 MB`, `1.5g`."""

from __future__ import annotations

import re

from graftlm.config.checking import shown
from graftlm.config.settings import RunConfig
from graftlm.errors import ConfigError

__all__ = ["format_size", "most_bytes", "parse_size"]

_MOST_BYTES = 1e18
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}

_BINARY_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_FEW_BYTES = 1_000_000
"""A plain number below this is refused: ``24`` probably means gigabytes."""
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """``"6GB"`` → 6,000,000,000; ``"512MiB"`` → 536,870,912; a plain number is bytes.

    Raises:
        ConfigError: not a size, or zero.
    """
    match = _SIZE.fullmatch(str(text).strip())
    size = 0
    if match:
        number, unit, binary = match.groups()
        units = _BINARY_UNITS if binary else _UNITS
        nbytes = float(number) * units.get(unit.lower(), 0)
        size = int(nbytes) if nbytes < _MOST_BYTES else 0
    if size <= 0:
        raise ConfigError(
            f"{shown(text)!r} is not a size: expected one such as 6GB, 800MB or 1.5GiB"
        )
    if isinstance(text, str) and text.strip().isdecimal() and size < _FEW_BYTES:
        raise ConfigError(f"{text} is {text} bytes; did you mean {text.strip()}GB?")
    return size


def most_bytes(config: RunConfig) -> int | None:
    """The memory that these settings allow; ``None``: no limit."""
    return None if config.memory == "unlimited" else parse_size(config.memory)


def format_size(nbytes: float) -> str:
    """``6_000_000_000`` → ``"6.00 GB"``; decimal units, three significant digits or more."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(nbytes) >= size:
            value = nbytes / size
            return f"{value:.2f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{nbytes:.0f} B"

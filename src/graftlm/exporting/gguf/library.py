"""The `gguf` library, which reads and writes the file format; installed on request."""

from __future__ import annotations

import importlib
from typing import Any

from graftlm.errors import ConfigError

__all__ = ["gguf_library"]


def gguf_library() -> Any:
    """The module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise ConfigError(
            "writing GGUF files needs the package gguf: pip install 'graftlm[gguf]'"
        ) from error

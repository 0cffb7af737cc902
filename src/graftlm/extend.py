"""What code outside the package builds on: the contracts, and how to make an implementation known.

    from graftlm.extend import FrozenWeight, register_format

Names are resolved on first use, so that importing this module costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.frozen.checkpoint_format import CheckpointFormat
    from graftlm.frozen.formats import format_named, formats, register_format
    from graftlm.frozen.weight import FrozenWeight, ScaledRows, StorageSettings, WeightSettings

__all__ = [
    "CheckpointFormat",
    "FrozenWeight",
    "ScaledRows",
    "StorageSettings",
    "WeightSettings",
    "format_named",
    "formats",
    "register_format",
]

_HOME = {
    "CheckpointFormat": "frozen.checkpoint_format",
    "FrozenWeight": "frozen.weight",
    "ScaledRows": "frozen.weight",
    "StorageSettings": "frozen.weight",
    "WeightSettings": "frozen.weight",
    "format_named": "frozen.formats",
    "formats": "frozen.formats",
    "register_format": "frozen.formats",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graftlm.extend' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graftlm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

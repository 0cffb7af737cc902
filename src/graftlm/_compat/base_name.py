"""The name that transformers keeps of the model which another was made from.

Seen in transformers 5.23: `config._name_or_path`, which PEFT records as an adapter's base.
"""

from __future__ import annotations

from typing import Any

__all__ = ["BASE_NAME", "base_name", "set_base_name"]

BASE_NAME = "_name_or_path"
"""The setting of a config that holds the name."""


def base_name(model: Any) -> str:
    """The name of the folder or repository that ``model`` was loaded from; empty if unknown."""
    name: str = getattr(model.config, "_name_or_path", "") or ""
    return name


def set_base_name(model: Any, name: str) -> None:
    """Make ``name`` what other tools take for the origin of ``model``."""
    model.name_or_path = model.config._name_or_path = name

"""The records of a run in JSON (`provenance.json`, `summary.json`); a damaged one is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftlm.errors import ArtifactError

__all__ = ["object_in", "read_record"]


def read_record(path: Path) -> dict[str, Any]:
    """The content of a record that this package wrote as JSON.

    Raises:
        ArtifactError: it cannot be read, or is no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is damaged ({error}); expected an object of JSON. Put a copy of the file back."
        ) from error
    return value


def object_in(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object inside a record; empty if there is none of that name.

    Raises:
        ArtifactError: the value is something else.
    """
    value = record.get(name, {})
    if not isinstance(value, dict):
        raise ArtifactError(f"the entry {name} of a run's record is damaged: expected an object")
    return value

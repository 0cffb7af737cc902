"""Whether a converted model in the cache still is what was written there.

The conversion records size, time and checksum of each file. A file of the same size and time is
taken as unchanged; of any other the checksum is computed. So a good cache costs nothing to check,
and a damaged one is found even where only some bytes were overwritten.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from graftlm.errors import ModelError
from graftlm.files import write_json

__all__ = ["damage_of", "record_files"]

RECORD = "converted.json"


def record_files(folder: Path) -> None:
    """Record the files of a folder that was just written."""
    files = {file.name: _state(file) for file in sorted(folder.iterdir()) if file.is_file()}
    write_json(folder / RECORD, {"files": files})


def damage_of(folder: Path) -> str:
    """What is wrong with a converted folder; empty if nothing is."""
    try:
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return _unreadable(folder)  # an older graftlm wrote no record
    except (OSError, ValueError, KeyError, TypeError):
        return f"{RECORD} cannot be read"
    for name, state in known.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        status = file.stat()
        if status.st_size != state["size"]:
            return f"{name} has {status.st_size:,} bytes instead of {state['size']:,}"
        if status.st_mtime_ns != state["mtime_ns"] and _checksum(file) != state["crc32"]:
            return f"{name} was changed"
    return ""


def _unreadable(folder: Path) -> str:
    from graftlm.models.safetensors_file import Checkpoint  # with torch, which a name does not need

    try:
        for name in ("config.json", "tokenizer.json"):
            json.loads((folder / name).read_text(encoding="utf-8"))
        Checkpoint(folder)
    except (OSError, ValueError, ModelError) as error:
        return str(error)
    return ""


def _state(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "crc32": _checksum(file)}


def _checksum(file: Path) -> int:
    total = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            total = zlib.crc32(block, total)
    return total

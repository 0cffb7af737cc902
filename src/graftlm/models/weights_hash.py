"""The hash of a model's weights, by which a run knows its base again.

    sha256 over the contents of the folder's *.safetensors, in the order of their names

Reading many gigabytes takes seconds. The hash is kept in the cache under the names, sizes and times
of the files; a file that changes in any of them is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path

from graftlm.cache import cache_folder
from graftlm.errors import ResourceError
from graftlm.files import sha256_of_files, write_json

__all__ = ["quantization_method", "weights_hash"]


def weights_hash(folder: Path) -> str | None:
    """The hash of the weights in ``folder``; ``None`` if there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    stats = [(file, file.stat()) for file in files]
    known = [
        [str(file.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]
        for file, s in stats
    ]
    key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
    place = cache_folder() / "weights" / f"{key}.json"
    digest = _read(place)
    if digest is None:
        digest = sha256_of_files(files)
        with contextlib.suppress(ResourceError):  # the next command reads the weights again
            write_json(place, {"sha256": digest})
    return digest


def _read(place: Path) -> str | None:
    """A digest that was kept; ``None`` where there is none, or a damaged file."""
    try:
        digest = json.loads(place.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else None


def quantization_method(folder: Path) -> str | None:
    """How the folder stores its layers, as its config.json says; ``None`` for 16 or 32 bits."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = config.get("quantization_config")
    return None if settings is None else str(settings.get("quant_method"))

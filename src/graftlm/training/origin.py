"""The origin of a result: hashes of the base model, of the data files and of the rows.

They are recorded in ``provenance.json``. A resumed run is compared with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftlm.config import DataConfig, RunConfig
from graftlm.config.records import object_in, read_record
from graftlm.data.batch import Example
from graftlm.data.store import Examples
from graftlm.files import sha256_of_files
from graftlm.models.weights_hash import quantization_method, weights_hash

__all__ = ["changed_files", "changes", "named", "origin_of"]


def origin_of(
    config: RunConfig, base: Path | None, rows: Sequence[Example], held: Sequence[Example]
) -> dict[str, Any]:
    """The hashes of the inputs of a run.

    Args:
        config: the run's settings.
        base: the folder of the base model; ``None`` for a model in hand.
        rows: the training rows, before packing.
        held: the held-out rows.
    """
    return {
        "base": {
            "name": config.model.name,
            "sha256": None if base is None else weights_hash(base),
            "quantization": None if base is None else quantization_method(base),
        },
        "data": {
            path: sha256_of_files([Path(path)])
            for source in (config.data.train, config.data.eval)
            for path in (source if isinstance(source, dict) else [source])
            if Path(path).is_file()
        },
        "rows_sha256": {"train": _digest(rows), "eval": _digest(held)},
    }


def changes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The inputs that differ from the record; inputs without a record are skipped."""
    found = []
    before, after = object_in(recorded, "base").get("sha256"), now["base"]["sha256"]
    if before and after and before != after:
        found.append(f"the weights of the base model {now['base']['name']}")
    files = object_in(recorded, "data")
    found += [path for path, digest in now["data"].items() if files.get(path, digest) != digest]
    names = {"train": "the rows to train on", "eval": "the rows to measure on"}
    for which, digest in object_in(recorded, "rows_sha256").items():
        if digest and now["rows_sha256"][which] and digest != now["rows_sha256"][which]:
            found.append(names[which])
    return found


def changed_files(out: Path) -> list[str]:
    """The data files of the run in ``out`` that have changed since it began."""
    provenance = out / "provenance.json"
    if not provenance.exists():
        return []  # it ended between its first two files
    known = object_in(read_record(provenance), "data")
    return [
        path
        for path, digest in known.items()
        if not Path(path).is_file() or sha256_of_files([Path(path)]) != digest
    ]


def _digest(rows: Sequence[Example]) -> str | None:
    """One hash over the contents of the rows, in order; ``None`` for the caller's own examples."""
    if not isinstance(rows, Examples) or not len(rows):
        return None
    return hashlib.sha256(rows.hashes.tobytes() + rows.lengths.tobytes()).hexdigest()


def named(config: DataConfig, data: Any, eval_data: Any) -> DataConfig:
    """The data settings with the names of the files, for the record."""
    names = {
        key: str(value)
        for key, value in (("train", data), ("eval", eval_data))
        if isinstance(value, str | Path)
    }
    return config.model_copy(update=names)

"""Refuses an adapter on another base than that of its training: what is recorded is compared.

    provenance.json of its run    base.sha256   the hash of the base's weights
    adapter_config.json           revision      the version of the base in its repository

`load_adapter` asks this of every model whose folder is known, so that each way to use an adapter
does: evaluation, answers, merges, exports and comparisons.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from graftlm.adapters.adapter_folder import adapter_folder, run_folder_of
from graftlm.adapters.peft_config import AdapterConfig, read_config
from graftlm.errors import ArtifactError
from graftlm.models.source import with_revision
from graftlm.models.weights_hash import quantization_method, weights_hash

__all__ = ["require_same_base"]


def require_same_base(adapter: str | Path, base: Path) -> None:
    """Refuse a base that differs from what the adapter's files record.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        base: the folder of the base model.

    Raises:
        ArtifactError: the weights or the revision differ, or the record cannot be read.
    """
    _require_revision(read_config(adapter_folder(adapter)), base)
    record = run_folder_of(adapter) / "provenance.json"
    if not record.is_file():
        return
    trained = _base_in(record)
    recorded = trained.get("sha256")
    if not recorded or recorded == (found := weights_hash(base)):
        return
    name = trained.get("name") or "its base"
    if found is None:
        _note(f"{base} has no safetensors to compare with those that {adapter} was trained on")
        return
    here, there = quantization_method(base), trained.get("quantization", "unknown")
    if there not in ("unknown", here):
        _note(
            f"{adapter} was trained on {name} with weights in {there or '16 or 32 bits'}, and "
            f"{base} holds them in {here or '16 or 32 bits'}: whether it is the same model cannot "
            "be compared"
        )
        return
    raise ArtifactError(
        f"{base} is not the base that {adapter} was trained on: the weights recorded in {record} "
        "have another hash. Name that base, or put its weights back."
    )


def _base_in(record: Path) -> dict[str, Any]:
    try:
        base = json.loads(record.read_text(encoding="utf-8")).get("base", {})
        if not isinstance(base, dict):
            raise ValueError("its entry base is no object")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{record} cannot be read ({error}), so it is not known which base the adapter was "
            "trained on. Restore the file, or copy the adapter's own folder elsewhere and use it."
        ) from error
    return base


def _require_revision(config: AdapterConfig, base: Path) -> None:
    """Compare the revision with that of a folder in the Hub's cache; another cannot be compared.

    The cache holds each commit in ``snapshots/COMMIT``, and in ``refs/NAME`` the commit that a
    branch or a tag names.
    """
    wanted = config.revision
    if wanted is None:
        return
    repository = base.parent.parent
    if base.parent.name != "snapshots" or not repository.name.startswith("models--"):
        if wanted != "main":
            _note(
                f"the adapter names revision {wanted} of its base, and {base} does not say of "
                "which revision it is: they cannot be compared"
            )
        return
    reference = repository / "refs" / wanted
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted
    if base.name != commit:
        name = config.base_model_name_or_path or repository.name
        raise ArtifactError(
            f"the adapter was trained on revision {wanted} of {name}, and this base is commit "
            f"{base.name}. Name {with_revision(name, wanted)}."
        )


def _note(text: str) -> None:
    print(f"NOTE: {text}", file=sys.stderr)

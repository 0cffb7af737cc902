"""The run folder: what is in it, and when it may be written to.

config.yaml      every setting, resolved          metrics.jsonl    a line a step
provenance.json  hashes of base, data, settings   summary.json     the outcome
checkpoints/     step-N/ …                        adapter/         the result (full: model/)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from graftlm.config import RunConfig, load_run_config, settled
from graftlm.errors import ArtifactError, ConfigError, ResourceError
from graftlm.files import atomic_write, require_writable, write_json
from graftlm.system import versions

__all__ = ["begin_run", "check_run", "result_folder", "sha256_of_files"]

# Settings that decide how a run is watched, not what it computes: free to change on resume.
_FREE_ON_RESUME = {"out", "train.save_steps", "train.keep_checkpoints", "train.tensorboard"}


def check_run(out: Path, config: RunConfig, resume: bool) -> None:
    """Refuse, before any work, a run folder that could not be used; write nothing.

    Raises:
        ResourceError: the folder holds another run, or cannot be written.
        ArtifactError: nothing to resume.
        ConfigError: resuming with settings that would change the result.
    """
    saved = out / "config.yaml"
    if resume:
        if not saved.exists():
            raise ArtifactError(f"{out} holds no run to resume: {saved} is missing")
        # A run that is older than a setting with an `auto` began with what that comes to.
        _require_same_settings(settled(load_run_config(saved)), config)
    elif saved.exists():
        raise ResourceError(
            f"{out} already holds a run. Add --resume to go on with it, or choose another --out."
        )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ResourceError(f"{out} exists and is not an empty folder. Choose another --out.")
    require_writable(out)


def begin_run(
    out: Path, config: RunConfig, base_path: Path | None, rows: dict[str, Any] | None = None
) -> None:
    """Write down the settings and what the result will be made from.

    Args:
        out: the run folder.
        config: the settings.
        base_path: the base model's folder, if it has one.
        rows: what is recorded of the rows, above all how the model will be asked.
    """
    with atomic_write(out / "config.yaml") as temporary:
        temporary.write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )
    recorded = _provenance(config, base_path) | ({"rows": rows} if rows else {})
    write_json(out / "provenance.json", recorded)


def result_folder(out: Path, method: str) -> Path:
    """Where the outcome of a run lies: a PEFT adapter, or with ``full`` a whole model."""
    return out / ("model" if method == "full" else "adapter")


def _provenance(config: RunConfig, base_path: Path | None) -> dict[str, Any]:
    """Hashes of base, data and settings, and the versions of everything that computes."""
    settings = json.dumps(config.model_dump(mode="json", exclude={"out"}), sort_keys=True)
    base_files = sorted(base_path.glob("*.safetensors")) if base_path is not None else []
    return {
        "method": config.method,
        "base": {"name": config.model.name, "sha256": sha256_of_files(base_files)},
        "data": {
            path: sha256_of_files([Path(path)])
            for source in (config.data.train, config.data.eval)
            for path in (source if isinstance(source, dict) else [source or ""])
            if Path(path).is_file()
        },
        "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "versions": versions(),
    }


def sha256_of_files(paths: Iterable[Path]) -> str | None:
    """One hash over the contents of ``paths`` in order; ``None`` when there are none."""
    digest, found = hashlib.sha256(), False
    for path in paths:
        found = True
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if found else None


def _require_same_settings(saved: RunConfig, asked: RunConfig) -> None:
    before, now = _flatten(saved.model_dump()), _flatten(asked.model_dump())
    changed = [
        f"{name}: the run has {before[name]!r}, asked for {now[name]!r}"
        for name in before
        if before[name] != now[name] and name not in _FREE_ON_RESUME
    ]
    if changed:
        raise ConfigError(
            ["a resumed run must keep the settings it began with; these differ:", *changed]
        )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and prefix.count(".") == 0 and not key.endswith("_pattern"):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

"""The run folder: what is in it, and when it may be written to.

config.yaml      every setting, resolved          metrics.jsonl    a line a step
provenance.json  hashes of base, data, settings   summary.json     the outcome
checkpoints/     step-N/ …                        adapter/         the result (full: model/)
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from graftlm.config import ResolvedConfig, RunConfig, recorded_config
from graftlm.errors import ArtifactError, ConfigError, ResourceError
from graftlm.files import atomic_write, require_writable, write_json
from graftlm.system import versions
from graftlm.training import checkpoint
from graftlm.training.lock import OWN_FILES
from graftlm.training.origin import changes

__all__ = [
    "begin_run",
    "check_folder",
    "require_same_run",
    "require_same_settings",
    "result_folder",
    "run_in",
]

GoesOn = Literal["resumed", "extended", "anew"]

# Settings that decide how a run is watched, not what it computes: free to change on resume.
_FREE_ON_RESUME = {"out", "train.save_steps", "train.keep_checkpoints", "train.tensorboard"}


def check_folder(out: Path) -> None:
    """Refuse, before any work, a run folder that a new run could not use; write nothing.

    A run that ended before its first checkpoint has nothing to lose: a new one may take its place.

    Raises:
        ResourceError: the folder holds another run, or something else, or cannot be written.
    """
    if (out / "config.yaml").exists():
        if checkpoint.latest(out / "checkpoints") is not None or _has_result(out):
            raise ResourceError(
                f"{out} already holds a run. Add --resume to go on with it, or choose another "
                "--out."
            )
    elif out.exists() and (not out.is_dir() or {file.name for file in out.iterdir()} - OWN_FILES):
        raise ResourceError(f"{out} exists and is not an empty folder. Choose another --out.")
    require_writable(out)


def run_in(out: Path) -> RunConfig:
    """The settings of the run in ``out``, which is to go on.

    Raises:
        ArtifactError: there is none, or its settings cannot be read.
        ResourceError: the folder cannot be written.
    """
    saved = out / "config.yaml"
    if not saved.exists():
        raise ArtifactError(
            f"{out} holds no run to resume: {saved} is missing. Leave out --resume to start one "
            "there, or name the folder of the run by --out."
        )
    require_writable(out)
    return recorded_config(saved)


def begin_run(
    out: Path,
    config: RunConfig,
    origin: Mapping[str, Any],
    rows: Mapping[str, Any] | None = None,
) -> None:
    """Write down the settings and what the result will be made from.

    Args:
        out: the run folder.
        config: the settings.
        origin: from `origin_of`.
        rows: what is recorded of the rows, above all how the model will be asked.
    """
    with atomic_write(out / "config.yaml") as temporary:
        temporary.write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )
    settings = json.dumps(config.model_dump(mode="json", exclude={"out"}), sort_keys=True)
    known = {
        "method": config.method,
        **origin,
        **({"rows": dict(rows)} if rows else {}),
        "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "versions": versions(),
    }
    write_json(out / "provenance.json", known)


def result_folder(out: Path, method: str) -> Path:
    """Where the outcome of a run lies: a PEFT adapter, or with ``full`` a whole model."""
    return out / ("model" if method == "full" else "adapter")


def require_same_run(
    out: Path, begun: RunConfig, settings: ResolvedConfig, origin: Mapping[str, Any]
) -> GoesOn:
    """Refuse to go on as another run than the one that began in ``out``.

    A finished run may be given more steps.

    Returns:
        Whether it goes on from a checkpoint, is extended from one, or starts anew because it ended
        before its first.

    Raises:
        ConfigError: settings would change the result; all that differ are listed.
        ArtifactError: the base model or the rows are not those the run began with.
    """
    steps = begun.train.steps
    extended = steps is not None and settings.train.steps > steps and _finished(out)
    require_same_settings(begun, settings, extended=extended)
    provenance = out / "provenance.json"
    if provenance.exists():
        recorded = json.loads(provenance.read_text(encoding="utf-8"))
        if changed := changes(recorded, origin):
            raise ArtifactError(
                f"the run in {out} cannot go on: since it began, {' and '.join(changed)} changed. "
                "Put back what it began with, or start anew with another --out."
            )
    if checkpoint.latest(out / "checkpoints") is None:
        print(f"{out}: no checkpoint yet; the run starts from its beginning", file=sys.stderr)
        return "anew"
    return "extended" if extended else "resumed"


def require_same_settings(begun: RunConfig, asked: RunConfig, *, extended: bool = False) -> None:
    """Refuse to go on with settings that would change the result.

    What the run of an older graftlm left open is not compared: `continued` left it open too.

    Raises:
        ConfigError: listing what differs.
    """
    before, now = _flatten(begun.model_dump()), _flatten(asked.model_dump())
    free = _FREE_ON_RESUME | _open_in(begun)
    if extended:
        free = free | {"train.steps"}
    if extended or begun.train.steps == asked.train.steps:
        free = free | {"train.epochs"}  # what they were counted from, if anything was
    changed = [
        f"{name}: the run has {before[name]!r}, asked for {now[name]!r}"
        for name in before
        if before[name] != now[name] and name not in free
    ]
    if changed:
        raise ConfigError(
            [
                "a resumed run must keep the settings it began with (one that has finished may get "
                "more steps); these differ:",
                *changed,
            ]
        )


def _open_in(begun: RunConfig) -> set[str]:
    """What a run recorded without its value."""
    if isinstance(begun, ResolvedConfig):
        return set()
    names = ("model.dtype", "data.chat_template", "train.learning_rate", "train.micro_batch_tokens")
    flat = _flatten(begun.model_dump())
    opened = {name for name in names if flat[name] in (None, "auto")}
    return opened | {"train.steps"} if begun.train.steps is None else opened


def _finished(out: Path) -> bool:
    summary = out / "summary.json"
    return summary.exists() and bool(json.loads(summary.read_text(encoding="utf-8"))["finished"])


def _has_result(out: Path) -> bool:
    return any(result_folder(out, method).exists() for method in ("lora", "full"))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and prefix.count(".") == 0 and not key.endswith("_pattern"):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

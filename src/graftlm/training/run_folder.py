"""The run folder: its contents, and when a run may write to it.

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
from graftlm.config.records import read_record
from graftlm.errors import ArtifactError, ConfigError, ResourceError
from graftlm.files import atomic_write, require_writable, write_json
from graftlm.system import versions
from graftlm.system.processes import launch_name
from graftlm.training import checkpoint
from graftlm.training.lock import OWN_FILES
from graftlm.training.origin import changes

__all__ = [
    "begin_run",
    "begun_in_this_launch",
    "check_folder",
    "how_to_go_on",
    "require_same_run",
    "require_same_settings",
    "result_folder",
    "run_in",
]

GoesOn = Literal["resumed", "extended", "anew"]

# These settings do not change the result of a run, so they may change on resume.
_FREE_ON_RESUME = {
    "out",
    "device",
    "distributed",
    "train.save_steps",
    "train.keep_checkpoints",
    "train.samples",
    "train.tracking",
}


def check_folder(out: Path) -> None:
    """Refuse a run folder that a new run cannot use. Does not write; call it before any work.

    A run that ended before its first checkpoint has lost nothing, so a new one may replace it.

    Raises:
        ResourceError: the folder contains another run or other files, or is not writable.
    """
    if (out / "config.yaml").exists():
        if checkpoint.latest(out / "checkpoints") is not None or _has_result(out):
            raise ResourceError(
                f"{out} already holds a run. Add --resume (in Python resume=True) to go on with "
                "it, or choose another --out."
            )
    elif out.exists() and (not out.is_dir() or {file.name for file in out.iterdir()} - OWN_FILES):
        raise ResourceError(f"{out} exists and is not an empty folder. Choose another --out.")
    require_writable(out)


def run_in(out: Path) -> RunConfig:
    """The settings of the run in ``out``, which the caller resumes.

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
    *,
    extended: bool = False,
) -> None:
    """Write the settings and the origin of the result.

    An extended run is no longer finished. Its checkpoint must say so before the settings name the
    new number of steps: if this process then dies, the next one makes the missing steps.

    Args:
        out: the run folder.
        config: the settings.
        origin: from `origin_of`.
        rows: the record of the rows, with the prompt form.
        extended: the run had finished and now has more steps.
    """
    last = checkpoint.latest(out / "checkpoints") if extended else None
    if last is not None:
        checkpoint.reopen(last)
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
        **({"launch": name} if (name := launch_name()) else {}),
    }
    write_json(out / "provenance.json", known)


def begun_in_this_launch(out: Path) -> bool:
    """Whether the run in ``out`` is that of this launch, which torchrun has started again.

    An older run in the folder is not: it goes on only if the user says so.
    """
    provenance = out / "provenance.json"
    if launch_name() is None or not provenance.exists():
        return False
    return read_record(provenance).get("launch") == launch_name() and (out / "config.yaml").exists()


def result_folder(out: Path, method: str) -> Path:
    """The folder of the result: a PEFT adapter, or a whole model for ``full``."""
    return out / ("model" if method == "full" else "adapter")


def how_to_go_on(
    out: Path, begun: RunConfig | None, settings: ResolvedConfig, origin: Mapping[str, Any]
) -> GoesOn:
    """`require_same_run`, or ``anew`` for a run that has not begun."""
    return "anew" if begun is None else require_same_run(out, begun, settings, origin)


def require_same_run(
    out: Path, begun: RunConfig, settings: ResolvedConfig, origin: Mapping[str, Any]
) -> GoesOn:
    """Refuse to resume the run in ``out`` with settings or inputs that differ from its own.

    A finished run may get more steps.

    Returns:
        Whether the run continues from a checkpoint, is extended from one, or starts anew because
        it ended before its first checkpoint.

    Raises:
        ConfigError: settings differ that change the result; the message lists all of them.
        ArtifactError: the base model or the rows differ from those that the run began with.
    """
    steps = begun.train.steps
    extended = steps is not None and settings.train.steps > steps and _finished(out)
    require_same_settings(begun, settings, extended=extended)
    if isinstance(begun, ResolvedConfig) and begun.device != settings.device:
        print(
            f"NOTE: the run began on {begun.device} and goes on on {settings.device}: it will not "
            "be the same to the last bit",
            file=sys.stderr,
        )
    provenance = out / "provenance.json"
    if provenance.exists() and (changed := changes(read_record(provenance), origin)):
        raise ArtifactError(
            f"the run in {out} cannot go on: since it began, {' and '.join(changed)} changed. "
            "Put back what it began with, or start anew with another --out."
        )
    if checkpoint.latest(out / "checkpoints") is None:
        print(f"{out}: no checkpoint yet; the run starts from its beginning", file=sys.stderr)
        return "anew"
    return "extended" if extended else "resumed"


def require_same_settings(begun: RunConfig, asked: RunConfig, *, extended: bool = False) -> None:
    """Refuse to resume with settings that would change the result.

    An older graftlm recorded some settings without a value. They are not compared.

    Raises:
        ConfigError: settings differ; the message lists them.
    """
    before, now = _flatten(begun.model_dump()), _flatten(asked.model_dump())
    free = _FREE_ON_RESUME | _open_in(begun)
    if extended:
        free = free | {"train.steps"}
    if extended or begun.train.steps == asked.train.steps:
        free = free | {"train.epochs"}  # the steps may have been computed from it
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
    """The settings that a run recorded without a value."""
    if isinstance(begun, ResolvedConfig):
        return set()
    names = ("model.dtype", "data.chat_template", "train.learning_rate", "train.micro_batch_tokens")
    flat = _flatten(begun.model_dump())
    opened = {name for name in names if flat[name] in (None, "auto")}
    return opened | {"train.steps"} if begun.train.steps is None else opened


def _finished(out: Path) -> bool:
    summary = out / "summary.json"
    return summary.exists() and bool(read_record(summary).get("finished"))


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

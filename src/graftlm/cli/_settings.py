"""Flags for single settings, shared by the commands that take settings.

A flag is equivalent to ``--set``. A test compares each flag with its declaration in
`graftlm.config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "FLAGS",
    "Alpha",
    "BatchSize",
    "Data",
    "Device",
    "Epochs",
    "EvalData",
    "LearningRate",
    "MaxLength",
    "Memory",
    "Method",
    "Model",
    "Out",
    "Rank",
    "Seed",
    "Set",
    "Steps",
    "overrides",
    "words_of",
]

_HIDE = {"show_default": False}

Model = Annotated[str | None, typer.Option(help="The base model.", **_HIDE)]
Data = Annotated[str | None, typer.Option(help="The rows to train on.", **_HIDE)]
EvalData = Annotated[str | None, typer.Option(help="The rows to measure on.", **_HIDE)]
Method = Annotated[str | None, typer.Option(help="qlora, lora, full, or auto: what fits.", **_HIDE)]
Memory = Annotated[
    str | None, typer.Option(help="Stay under this, such as 2GB, or do not start.", **_HIDE)
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, xpu, mps; auto: what fits best.", **_HIDE)
]
Out = Annotated[str | None, typer.Option(help="The run folder.", **_HIDE)]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.", **_HIDE)]
Epochs = Annotated[
    float | None, typer.Option(help="Passes over the rows, where no --steps is given.", **_HIDE)
]
LearningRate = Annotated[
    str | None,
    typer.Option(
        "--learning-rate", "--lr", help="Peak learning rate; auto: short runs choose it.", **_HIDE
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="Rows in one batch.", **_HIDE)]
Rank = Annotated[
    str | None, typer.Option(help="Rank of the adapters; auto: short runs move it.", **_HIDE)
]
Alpha = Annotated[float | None, typer.Option(help="The update is scaled by alpha / rank.", **_HIDE)]
MaxLength = Annotated[int | None, typer.Option(help="Longest row in tokens.", **_HIDE)]
Seed = Annotated[int | None, typer.Option(help="Seed of adapters, order and dropout.", **_HIDE)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting: train.save_steps=50. Repeatable.", **_HIDE),
]

FLAGS = {
    "model": "model.name",
    "data": "data.train",
    "eval_data": "data.eval",
    "method": "method",
    "device": "device",
    "memory": "memory",
    "out": "out",
    "steps": "train.steps",
    "epochs": "train.epochs",
    "learning_rate": "train.learning_rate",
    "batch_size": "train.batch_size",
    "rank": "lora.rank",
    "alpha": "lora.alpha",
    "max_length": "data.max_length",
    "seed": "train.seed",
}
"""The parameter of each flag, and its setting."""
WORDS = (["train", "learning_rate"], ["lora", "rank"])
"""A number or a word, so that its flag is read as `--set` is."""


def words_of(
    config: Path | None,
    flags: Mapping[str, Any],
    resume: bool,
    assignments: Sequence[str],
    as_json: bool,
) -> list[str]:
    """The words of `graftlm train` that mean the same as these parameters."""
    words = [] if config is None else [str(config)]
    for name, value in flags.items():
        if value is not None:
            words.append(f"--{name.replace('_', '-')}={value}")
    words += [word for text in assignments for word in ("--set", text)]
    return words + ["--resume"] * resume + ["--json"] * as_json


def overrides(flags: Mapping[str, Any], assignments: Sequence[str]) -> list[tuple[list[str], Any]]:
    """The changes of the settings by the flags and ``--set``, in that order.

    Args:
        flags: the values by parameter; ``None`` for a flag that is not given.
        assignments: the values of ``--set``.

    Raises:
        ConfigError: a flag and ``--set`` differ on one setting.
    """
    from graftlm.config import parse_override, shown
    from graftlm.errors import ConfigError

    assigned = [parse_override(text) for text in assignments]
    given = [(FLAGS[name].split("."), v) for name, v in flags.items() if v is not None]
    given = [parse_override(f"{'.'.join(p)}={v}") if p in WORDS else (p, v) for p, v in given]
    twice = [
        f"{'.'.join(path)}: --set says {shown(value)}, the flag {shown(other)}; say it once"
        for path, value in assigned
        for flag, other in given
        if path == flag and value != other
    ]
    if twice:
        raise ConfigError(twice)
    changes = given + assigned
    names = [path for path, _ in changes]
    if ["train", "epochs"] in names and ["train", "steps"] not in names:
        changes.insert(0, (["train", "steps"], None))  # epochs replace the steps of a file or a run
    return changes

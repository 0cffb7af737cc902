"""`graftlm.compare`: full fine-tuning, LoRA and QLoRA side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import graftlm.report.compare as comparing
from graftlm.api.rows import Rows
from graftlm.api.settings import settings_of
from graftlm.config import RunConfig
from graftlm.report.compare.page import write_comparison
from graftlm.training.resolve import changed

__all__ = ["compare"]

HELD_OUT = 0.1
EVALUATIONS = 8


def compare(
    model: str | RunConfig,
    data: Rows | None = None,
    *,
    out: str | Path,
    eval_data: Rows | None = None,
    methods: Sequence[str] = ("full", "lora", "qlora"),
    ranks: Sequence[int] = (),
    steps: int | None = None,
    seeds: int = 1,
    score_rows: int = 0,
    outside: str | Path | None = None,
    device: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> comparing.Comparison:
    """Train by each method on the same tokens, as `graftlm compare` does, and compare.

    Each run has a process of its own. Called again, it uses the finished runs in ``out`` and
    resumes the others. Where the settings leave it open, a tenth of the rows is held out, short
    runs choose the learning rate of each method, and each run is measured eight times on the way.

    Args:
        model: the name of a model, or the settings that all runs share.
        data: the rows to train on.
        out: the folder, with `compare.html` and the runs.
        eval_data: the rows to measure on.
        methods: some of full, lora, qlora.
        ranks: of the adapters; by default the one in the settings.
        steps: optimiser steps of each run.
        seeds: runs of each method.
        score_rows: held-out rows to answer and to count the right ones of.
        outside: text outside the task, to see what is forgotten.
        device: where to train.
        progress: is called with a description of the current work.

    Raises:
        ConfigError: a setting is wrong, or ``out`` holds runs with other settings.
    """
    config = settings_of(model, data, eval_data, device=device, train__steps=steps)
    found = comparing.compare(
        _completed(config),
        Path(out),
        methods=methods,
        ranks=ranks,
        seeds=seeds,
        outside=Path(outside) if outside is not None else comparing.OUTSIDE,
        score_rows=score_rows,
        say=progress,
    )
    write_comparison(found)
    return found


def _completed(config: RunConfig) -> RunConfig:
    """The settings with default held-out rows, evaluations and probes, where they are not set."""
    if not config.data.model_fields_set & {"eval", "eval_fraction"}:
        config = changed(config, "data", eval_fraction=HELD_OUT)
    if "learning_rate" not in config.train.model_fields_set:
        config = changed(config, "train", learning_rate="auto")
    if config.train.steps is not None and "eval_steps" not in config.train.model_fields_set:
        every = max(1, -(-config.train.steps // EVALUATIONS))
        config = changed(config, "train", eval_steps=every)
    return config

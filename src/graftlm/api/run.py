"""`graftlm.run` and `graftlm.train`: a training run, from settings or of a model in hand.

A cell of a notebook is run more than once. A run folder that holds a *finished* run of the same
settings and rows is not trained again: `run` gives its result back, and `train` also puts its
weights into the model. Anything else in the folder is refused, and the message says what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from graftlm.api.rows import Rows, named_rows
from graftlm.api.settings import settings_of
from graftlm.config import DataConfig, RunConfig, TrainConfig, recorded_config, require_complete
from graftlm.config.records import read_record
from graftlm.errors import ArtifactError, ConfigError
from graftlm.planning.decide import run as run_planned
from graftlm.training import RunResult
from graftlm.training import train as train_in_hand
from graftlm.training.checkpoint import latest
from graftlm.training.hooks import Callback
from graftlm.training.origin import changed_files
from graftlm.training.resolve import continued
from graftlm.training.run_folder import require_same_settings

__all__ = ["run", "train"]


def run(
    config: RunConfig,
    data: Rows | None = None,
    *,
    eval_data: Rows | None = None,
    resume: bool = False,
    progress: bool = True,
    hooks: Sequence[Callback] = (),
) -> RunResult:
    """Do one whole training run as `graftlm train` does: plan, load, train, save.

    A finished run of the same settings and rows in ``config.out`` is not repeated: its result is
    returned.

    Args:
        config: the request; see `graftlm.RunConfig`.
        data: the rows to train on, if ``config.data.train`` does not name them.
        eval_data: the rows to measure on, if ``config.data.eval`` does not name them.
        resume: continue an unfinished run in ``config.out``, or give a finished one more steps;
            unset settings keep the values it began with.
        progress: print the plan's decision and the progress line on stderr.
        hooks: are called at fixed points of the run, see `graftlm.Hook`; a plain function is
            called with the metrics of each step.

    Raises:
        ConfigError: a required setting is missing, settings contradict each other, or
            ``config.out`` holds a finished run of other settings.
        ResourceError: it does not fit in memory or on the disk, or ``config.out`` holds an
            unfinished run or other files.
        GraftLMError: the model, the data or the training failed; see `graftlm.errors`.
    """
    config = settings_of(config, data, eval_data)
    require_complete(config)
    out = Path(config.out).absolute()
    if not resume and (done := _finished(out)) is not None:
        begun = recorded_config(out / "config.yaml")
        _require_same(out, begun, continued(config, begun))
        _require_same_files(out)
        _say_known(out)
        return done
    return run_planned(config, resume=resume, progress=progress, hooks=hooks)


def train(
    model: PreTrainedModel,
    tokenizer: Any,
    data: Rows | Sequence[Any],
    config: TrainConfig | None = None,
    *,
    out: str | Path,
    eval_data: Rows | Sequence[Any] | None = None,
    data_config: DataConfig | None = None,
    resume: bool = False,
    progress: bool = True,
    hooks: Sequence[Callback] = (),
) -> RunResult:
    """Train a loaded model: its adapters, or without adapters all parameters that need a gradient.

    A finished run of the same settings and rows in ``out`` is not repeated: the model gets its
    weights, and its result is returned.

    Args:
        model: from `graftlm.load_model`, with `graftlm.add_lora` applied unless all weights train.
        tokenizer: the model's.
        data: the rows: named, or given as dicts, a Hub data set or tokenised examples; for an
            objective of your own, the rows that it accepts.
        config: how to train.
        out: the run folder.
        eval_data: the held-out rows.
        data_config: how rows become tokens.
        resume: continue an unfinished run in ``out``, or give a finished one more steps.
        progress: draw the progress line on stderr.
        hooks: are called at fixed points of the run, see `graftlm.Hook`; a plain function is
            called with the metrics of each step.

    Raises:
        ConfigError: settings contradict each other, or ``out`` holds a finished run of others.
        ResourceError: the disk is too small, or ``out`` holds an unfinished run or other files.
        GraftLMError: the data or the training failed; see `graftlm.errors`.
    """
    asked, out = config or TrainConfig(), Path(out).absolute()
    rows: Any = data
    held: Any = eval_data
    if asked.objective == TrainConfig().objective:
        rows, held = _source(data), None if eval_data is None else _source(eval_data, "eval")
    if not resume and _finished(out) is not None and latest(out / "checkpoints") is not None:
        begun = recorded_config(out / "config.yaml").train
        if (asked.steps, asked.epochs) not in ((begun.steps, asked.epochs), (None, begun.epochs)):
            raise ConfigError(
                f"{out} holds a finished run of {begun.steps} steps. To give it more, pass "
                "resume=True; for another run, choose another out"
            )
        _say_known(out)
        resume = True
    return train_in_hand(
        model,
        tokenizer,
        rows,
        config,
        out=out,
        eval_data=held,
        data_config=data_config,
        resume=resume,
        progress=progress,
        hooks=hooks,
    )


def _source(rows: Any, purpose: Any = "train") -> Any:
    """Rows under a name; examples that are tokens already stay as they are."""
    if isinstance(rows, Sequence) and not isinstance(rows, str) and len(rows):
        first = rows[0]
        if not isinstance(first, dict | str):
            return rows
    return named_rows(rows, purpose)


def _finished(out: Path) -> RunResult | None:
    """The result of the finished run in ``out``, if there is one."""
    summary = out / "summary.json"
    if not summary.is_file() or not (out / "config.yaml").is_file():
        return None
    try:
        known = RunResult(**{"kept_step": None, **read_record(summary)})
    except TypeError as error:
        raise ArtifactError(
            f"{summary} is damaged ({error}); choose another folder, or remove this one"
        ) from error
    there = known.adapter is not None and Path(known.adapter).is_dir()
    return known if known.finished and there else None


def _require_same(out: Path, begun: RunConfig, asked: RunConfig) -> None:
    try:
        require_same_settings(begun, asked)
    except ConfigError as error:
        raise ConfigError(
            [
                f"{out} holds a finished run of other settings. Choose another out, or for more "
                "steps pass resume=True. These differ:",
                *error.problems[1:],
            ]
        ) from None


def _require_same_files(out: Path) -> None:
    if changed := changed_files(out):
        raise ConfigError(
            f"{out} holds a finished run on other rows: {', '.join(changed)} has changed since. "
            "Choose another out"
        )


def _say_known(out: Path) -> None:
    print(f"{out}: finished before, with these settings; not trained again", file=sys.stderr)

"""`compare`: do the missing runs, measure them, and summarise."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from graftlm.config import RunConfig, shown
from graftlm.errors import ConfigError, DataError
from graftlm.files import require_writable, sha256_of_files
from graftlm.report.compare.figures import Figures, figures_of
from graftlm.report.compare.launch import launch
from graftlm.report.compare.variants import MEASURED, Job, jobs, variants
from graftlm.report.compare.verdict import verdict
from graftlm.report.curves import Curve, held_out_curve
from graftlm.training import checkpoint
from graftlm.training.hooks.metrics_file import read_metrics
from graftlm.training.origin import changed_files
from graftlm.training.resolve import continued
from graftlm.training.run_folder import (
    check_folder,
    require_same_settings,
    run_in,
)

__all__ = ["OUTSIDE", "Comparison", "compare", "standing"]

MOST_SEEDS = 1000
"""More runs of each variant are a slip of the finger."""
MOST_SCORED = 1_000_000

OUTSIDE = Path(__file__).parents[1] / "outside.txt"
"""A page of text on many subjects, written for this purpose."""

Launch = Callable[[dict[str, Any], str], None]
Standing = Literal["new", "resume", "done"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The outcome.

    Attributes:
        config: the settings all runs share.
        columns: the figures, one column per variant.
        jobs: their runs, in order.
        verdict: the conclusions from the figures; see `verdict`.
        outside: the text for the measurement of forgetting.
        out: the folder.
    """

    config: RunConfig
    columns: tuple[Figures, ...]
    jobs: tuple[Job, ...]
    verdict: tuple[str, ...]
    outside: Path
    out: Path

    def to_json(self) -> dict[str, Any]:
        """The output of `graftlm compare --json`, without the page's path."""
        return {
            "model": self.config.model.name,
            "data": self.config.data.train,
            "eval_data": self.config.data.eval or None,
            "outside": str(self.outside),
            "columns": [dataclasses.asdict(column) for column in self.columns],
            "runs": [str(job.folder) for job in self.jobs],
            "verdict": list(self.verdict),
        }


def compare(
    config: RunConfig,
    out: Path,
    *,
    methods: Sequence[str] = ("full", "lora", "qlora"),
    ranks: Sequence[int] = (),
    seeds: int = 1,
    outside: Path = OUTSIDE,
    score_rows: int = 0,
    run_job: Launch = launch,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Train every variant on the same tokens, and compare the results.

    Finished runs in ``out`` are used again, unfinished ones are resumed.

    Args:
        config: the settings all runs share; held-out rows are needed.
        out: the folder; runs go to ``runs/`` in it.
        methods: some of full, lora, qlora.
        ranks: the ranks of the adapters; by default the rank in the settings.
        seeds: runs of each variant.
        outside: text outside the task, for forgetting.
        score_rows: held-out rows to answer; 0 for none.
        run_job: does one job; by default in a new process.
        say: is called with a description of the current work.

    Raises:
        ConfigError: the request is wrong, or ``out`` holds runs with other settings.
    """
    columns = variants(methods, ranks or [config.lora.rank])
    _check(config, outside, seeds, score_rows)
    work = jobs(config, columns, seeds, out)
    for job in work:
        standing(job)  # refuse it before the first run, not after hours
    require_writable(out)
    digest = sha256_of_files([outside])
    for number, job in enumerate(work, start=1):
        asked = {
            "outside": str(outside),
            "outside_sha256": digest,
            "score_rows": score_rows,
            "plan": job.seed == config.train.seed,
        }
        _do(
            job,
            asked,
            f"{number} of {len(work)}: {job.variant.name}, seed {job.seed}",
            run_job,
            say,
        )
    figures = tuple(
        figures_of(one, [_results(job) for job in own], [_curve(job) for job in own])
        for one in columns
        if (own := [job for job in work if job.variant == one])
    )
    return Comparison(config, figures, tuple(work), tuple(verdict(figures)), outside, out)


def standing(job: Job) -> Standing:
    """The state of the run of ``job``.

    Raises:
        ConfigError: its folder holds a run with other settings, or on rows that have changed.
    """
    if not (job.folder / "config.yaml").exists():
        check_folder(job.folder)
        return "new"
    begun = run_in(job.folder)
    try:
        require_same_settings(begun, continued(job.config, begun))
    except ConfigError as error:
        raise ConfigError(
            [
                f"{job.folder} holds a run with other settings. Choose another --out, or remove "
                "the folder. These differ:",
                *error.problems[1:],
            ]
        ) from None
    _require_same_rows(job)
    summary = job.folder / "summary.json"
    if summary.exists() and json.loads(summary.read_text(encoding="utf-8"))["finished"]:
        return "done"
    return "resume" if checkpoint.latest(job.folder / "checkpoints") else "new"


def _do(
    job: Job, asked: dict[str, Any], name: str, run_job: Launch, say: Callable[[str], None]
) -> None:
    """Train and measure, unless it is already done."""
    state = standing(job)
    measured = job.folder / MEASURED
    if (
        state == "done"
        and measured.exists()
        and json.loads(measured.read_text(encoding="utf-8"))["asked"] == asked
    ):
        say(f"{name}: done before")
        return
    say(name + {"new": "", "resume": ", going on", "done": ", measured again"}[state])
    run_job({"config": job.config.model_dump(mode="json"), "train": state, "measure": asked}, name)
    if standing(job) != "done":
        raise KeyboardInterrupt
    if not job.config.train.save_steps:
        shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)


def _check(config: RunConfig, outside: Path, seeds: int, score_rows: int) -> None:
    """Refuse a wrong request before a model is opened; report all problems at once."""
    problems = [
        f"{name} is not set: pass {flag}"
        for name, value, flag in (
            ("model.name", config.model.name, "--model, e.g. gemma-3-270m"),
            ("data.train", config.data.train, "--data FILE"),
        )
        if not value
    ]
    if not config.data.eval and not config.data.eval_fraction:
        problems.append(
            "a comparison needs held-out rows: pass --eval-data FILE, or hold some of the data out "
            "with --set data.eval_fraction=0.1"
        )
    if config.train.early_stopping_patience:
        problems.append(
            "train.early_stopping_patience would give each method another number of tokens; a "
            "comparison needs it unset"
        )
    if config.train.gradient_checkpointing == "auto":
        problems.append(
            "train.gradient_checkpointing is auto, which may be another for each method: say true "
            "or false"
        )
    if not 1 <= seeds <= MOST_SEEDS:
        problems.append(f"--seeds {shown(seeds)}: expected 1 to {MOST_SEEDS}")
    elif config.train.seed + seeds > 2**63:
        problems.append(f"--seeds {seeds}: counted from train.seed, the last is over 64 bits")
    if not 0 <= score_rows <= MOST_SCORED:
        problems.append(f"--score-rows {shown(score_rows)}: expected 0 for none, to {MOST_SCORED}")
    if problems:
        raise ConfigError(problems)
    if not outside.is_file():
        raise DataError(f"--outside {outside} is no file; expected text outside the task")


def _require_same_rows(job: Job) -> None:
    if changed := changed_files(job.folder):
        raise ConfigError(
            f"{job.folder} was trained on other rows: {', '.join(changed)} has changed since. "
            "Choose another --out, or remove the folder."
        )


def _curve(job: Job) -> Curve:
    """The held-out loss of a run."""
    return held_out_curve(read_metrics(job.folder / "metrics.jsonl"), _results(job)[0])


def _results(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    summary, measured = (
        json.loads((job.folder / name).read_text(encoding="utf-8"))
        for name in ("summary.json", MEASURED)
    )
    return summary, measured

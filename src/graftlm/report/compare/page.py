"""The comparison as one page: verdict, curves, memory, table, settings, provenance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftlm.config import recorded_config
from graftlm.files import atomic_write, sha256_of_files
from graftlm.report.axis import figure
from graftlm.report.compare.api import Comparison
from graftlm.report.compare.figures import Figures
from graftlm.report.compare.table import table
from graftlm.report.compare.variants import Job
from graftlm.report.curves import Curve, held_out_curve, running_mean, training_curve
from graftlm.report.memory import memory_bars
from graftlm.report.page import render
from graftlm.report.settings import SettingRow, provenance_rows, setting_rows
from graftlm.report.svg import Bar, Chart, Series, line_chart, stacked_bars
from graftlm.training.hooks.metrics_file import read_metrics

__all__ = ["comparison_page", "write_comparison"]

_VARIED = {"method", "out", "lora.rank", "lora.alpha", "train.seed"}


def write_comparison(found: Comparison) -> Path:
    """Write `compare.json` and `compare.html` into the comparison's folder; the page's path."""
    path = found.out / "compare.html"
    text = comparison_page(found)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    tree = json.dumps(found.to_json() | {"report": str(path)}, indent=2, ensure_ascii=False)
    with atomic_write(found.out / "compare.json") as temporary:
        temporary.write_text(tree + "\n", encoding="utf-8")
    return path


def comparison_page(found: Comparison) -> str:
    """The page's HTML."""
    names = [column.name for column in found.columns]
    seeds = sorted({job.seed for job in found.jobs})
    first = found.columns[0]
    return render(
        "compare.html",
        model=Path(found.config.model.name).name,
        names=names,
        lead=f"Each read the same {first.tokens:,} tokens in the same order, in a process of its "
        f"own{f', with {len(seeds)} seeds' if len(seeds) > 1 else ''}. "
        "Losses are in nats per supervised token.",
        verdict=found.verdict,
        charts=_charts(found),
        rows=table(found.columns),
        several=len(seeds) > 1,
        settings=_settings(found, names, seeds),
        provenance=_provenance(found),
        runs=[
            (f"{job.variant.name}, seed {job.seed}", f"runs/{job.folder.name}/report.html")
            for job in found.jobs
        ],
    )


def _charts(found: Comparison) -> list[Chart]:
    memory = [(one.name, one.planned, one.peak_memory.mean) for one in found.columns]
    held, training = [], []
    for colour, column in enumerate(found.columns):
        jobs = [job for job in found.jobs if job.variant.name == column.name]
        curves = [_curves(job) for job in jobs]
        shade = colour % 9
        held.append(Series(column.name, _mean([one for one, _ in curves]), shade, "dots"))
        training.append(Series(column.name, _mean([one for _, one in curves]), shade))
    charts = (
        line_chart("Held-out loss", held, y_label="nats per token"),
        line_chart("Training loss, smoothed", training, y_label="nats per token"),
        stacked_bars("Peak memory", memory_bars(memory)),
        stacked_bars("Time in training steps", _time_bars(found.columns)),
    )
    return [chart for chart in charts if chart is not None]


def _time_bars(columns: Sequence[Figures]) -> list[Bar]:
    return [
        Bar(one.name, [("", one.seconds.mean, index % 9)], f"{figure(one.seconds.mean)} s")
        for index, one in enumerate(columns)
    ]


def _curves(job: Job) -> tuple[Curve, Curve]:
    """Held-out and training loss of one run."""
    metrics = read_metrics(job.folder / "metrics.jsonl")
    summary = json.loads((job.folder / "summary.json").read_text(encoding="utf-8"))
    return held_out_curve(metrics, summary), running_mean(training_curve(metrics))


def _mean(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds, which all have the same steps."""
    return [
        (points[0][0], sum(y for _, y in points) / len(points))
        for points in zip(*curves, strict=True)
    ]


def _settings(found: Comparison, names: Sequence[str], seeds: Sequence[int]) -> list[SettingRow]:
    rows = [
        SettingRow("compared", ", ".join(names), default=False),
        SettingRow("seeds", ", ".join(map(str, seeds)), default=False),
    ]
    ranks = sorted({one.rank for one in found.columns if one.rank is not None})
    if ranks:
        alpha = found.config.lora.alpha / found.config.lora.rank
        said = f"{', '.join(map(str, ranks))}; alpha is {alpha:g} times the rank"
        rows.append(SettingRow("lora.rank", said, default=False))
    if found.config.train.learning_rate in (None, "auto"):
        rates = [
            f"{job.variant.name} {recorded_config(file).train.learning_rate:g}"
            for job in found.jobs
            if (file := job.folder / "config.yaml").exists()
        ]
        how = "learning rate, probed" if found.config.train.learning_rate else "learning rate"
        rows.append(SettingRow(how, ", ".join(dict.fromkeys(rates)), default=False))
    return rows + [row for row in setting_rows(found.config) if row.name not in _VARIED]


def _provenance(found: Comparison) -> list[tuple[str, str]]:
    text = (found.jobs[0].folder / "provenance.json").read_text(encoding="utf-8")
    known: dict[str, Any] = json.loads(text)
    rows = [row for row in provenance_rows(known) if row[0] != "settings"]
    outside = f"text outside the task, {found.outside.name}"
    return [*rows, (outside, f"sha256 {sha256_of_files([found.outside])}")]

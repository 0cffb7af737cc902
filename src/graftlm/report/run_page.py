"""One run as one page: its curves, memory and speed, settings, and provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftlm.adapters.variant_of_file import WEIGHTS_NAME
from graftlm.config import recorded_config
from graftlm.errors import ArtifactError
from graftlm.files import atomic_write
from graftlm.report.curves import held_out_curve, running_mean, training_curve
from graftlm.report.memory import memory_bars
from graftlm.report.page import render
from graftlm.report.ranks import advice, layer_ranks, rank_rows
from graftlm.report.settings import provenance_rows, setting_rows
from graftlm.report.svg import Chart, Series, line_chart, stacked_bars
from graftlm.training.hooks.metrics_file import read_metrics
from graftlm.training.run_folder import result_folder

__all__ = ["METHOD_NAMES", "run_page", "write_run_page"]

METHOD_NAMES = {"qlora": "QLoRA", "lora": "LoRA", "full": "Full fine-tuning"}


def write_run_page(folder: Path, planned: Mapping[str, int] | None = None) -> Path:
    """Write `report.html` into the run folder and return its path; see `run_page`."""
    path = folder / "report.html"
    text = run_page(folder, planned)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def run_page(folder: Path, planned: Mapping[str, int] | None = None) -> str:
    """The page of a finished or stopped run.

    Args:
        folder: the run folder.
        planned: the components of the peak in the plan, in bytes, if there was a plan.

    Raises:
        ArtifactError: the folder holds no run with a summary.
    """
    summary = _read(folder / "summary.json")
    config = recorded_config(folder / "config.yaml")
    metrics = read_metrics(folder / "metrics.jsonl")
    state = "" if summary["finished"] else ", stopped before its end"
    method = METHOD_NAMES[summary["method"]]
    adapter = result_folder(folder, summary["method"])
    has_adapter = summary["method"] != "full" and (adapter / WEIGHTS_NAME).exists()
    layers = layer_ranks(adapter) if has_adapter else []
    return render(
        "run.html",
        name=folder.name,
        heading=f"{method} on {Path(summary['model']).name}: {_outcome(summary)}",
        lead=f"{summary['steps']:,} steps, {summary['supervised_tokens']:,} supervised tokens of "
        f"{summary['tokens']:,} read{state}. Losses are in nats per supervised token.",
        facts=_facts(summary),
        charts=_charts(metrics, summary, planned or {}),
        ranks=rank_rows(layers),
        advice=advice(layers),
        settings=setting_rows(config),
        provenance=provenance_rows(_read(folder / "provenance.json")),
    )


def _outcome(summary: Mapping[str, Any]) -> str:
    before, after = summary["eval_loss_before"], summary["eval_loss_after"]
    if before is not None and after is not None:
        return f"held-out loss {before:.3f} → {after:.3f}"
    loss = summary["train_loss"]
    return "nothing trained yet" if loss is None else f"training loss {loss:.3f}"


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    trained, total = summary["trainable_parameters"], summary["total_parameters"]
    facts = [
        ("peak memory", f"{summary['peak_memory_bytes'] / 1e9:.2f} GB"),
        ("time in steps", f"{summary['wall_seconds']:,.0f} s"),
        ("speed", f"{summary['tokens_per_second']:,.0f} tokens/s"),
        ("trained parameters", f"{trained:,} ({trained / max(1, total):.2%})"),
    ]
    if summary["train_loss"] is not None:
        facts.append(("training loss", f"{summary['train_loss']:.4f}"))
    before, after = summary["eval_loss_before"], summary["eval_loss_after"]
    if before is not None:
        shown = "" if after is None else f" → {after:.4f}"
        facts.append(("held-out loss", f"{before:.4f}{shown}"))
    return facts


def _charts(
    metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], planned: Mapping[str, int]
) -> list[Chart]:
    method = METHOD_NAMES[summary["method"]]
    losses = training_curve(metrics)
    memory = [(step, value / 1e9) for step, value in training_curve(metrics, "memory_bytes")]
    speed = training_curve(metrics, "tokens_per_second")
    peak = summary["peak_memory_bytes"] / 1e9
    at_peak = [(memory[0][0], peak), (memory[-1][0], peak)] if memory else []
    charts = (
        line_chart(
            "Loss",
            [
                Series("", losses, 0, "faint"),
                Series("training", running_mean(losses), 0),
                Series("held-out", held_out_curve(metrics, summary), 1, "dots"),
            ],
            y_label="nats per token",
        ),
        line_chart(
            "Memory of the process",
            [Series("between steps", memory, 2), Series("highest", at_peak, 1, "dashed")],
            y_label="GB",
            from_zero=True,
        ),
        line_chart(
            "Speed",
            [Series("", speed, 3, "faint"), Series("tokens a second", running_mean(speed), 3)],
            y_label="tokens a second",
            from_zero=True,
        ),
        line_chart(
            "Learning rate",
            [Series("learning rate", training_curve(metrics, "learning_rate"), 6)],
            from_zero=True,
        ),
        stacked_bars(
            "Peak memory: the plan's parts, and a line at what was measured",
            memory_bars([(method, planned, summary["peak_memory_bytes"])]) if planned else [],
        ),
    )
    return [chart for chart in charts if chart is not None]


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot read {path}: {error}. Expected the folder of a run that has ended or stopped."
        ) from error
    return found

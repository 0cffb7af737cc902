"""`graftlm demo`: all stages on a real model, in minutes."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli._shared import DeviceOption, JsonOption, program, say, stderr_console
from graftlm.cli.train import report

if TYPE_CHECKING:
    from graftlm.demo.stages import DemoResult

__all__ = ["demo"]


def demo(
    method: Annotated[str, typer.Option(help="qlora, lora or full.")] = "qlora",
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("demo-run"),
    model: Annotated[str, typer.Option(help="The base model.")] = "gemma-3-270m",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimiser steps. Default: what it takes to learn the task."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a real model to turn messages into JSON records, and show what it learned.

    Example: `graftlm demo --method qlora --out demo-run`
    """
    from graftlm.config import RunConfig, validate
    from graftlm.demo.stages import DemoSettings, run_demo
    from graftlm.errors import ResourceError
    from graftlm.system.devices import device_named

    if out.exists() and any(out.iterdir()):
        raise ResourceError(f"{out} is not empty. Remove it, or choose another --out.")
    checked = validate(RunConfig, {"method": method, "train": {"steps": steps}})
    device_named(device)  # refuses what is no device
    settings = DemoSettings(model=model, method=checked.method, device=device)
    if steps is not None:
        settings = dataclasses.replace(settings, steps=steps)
    console = stderr_console()
    result = run_demo(settings, out, lambda line: console.print(f"[bold]▸ {line}"))
    page = report(out / "run")
    say(_as_tree(result), as_json, text(result, out, settings) + page)


def _as_tree(result: DemoResult) -> dict[str, Any]:
    def scores(total: Any) -> dict[str, Any]:
        return dataclasses.asdict(total) | {
            "exact_match": total.exact_match,
            "field_accuracy": total.field_accuracy,
        }

    return {
        "rows": result.rows,
        "before": scores(result.before),
        "after": scores(result.after),
        "training": dataclasses.asdict(result.training),
        "adapter_bytes": result.adapter_bytes,
    }


def text(result: DemoResult, out: Path, settings: Any) -> str:
    """The final report as text."""
    from graftlm.report.terminal import line_chart
    from graftlm.training.hooks.metrics_file import read_metrics

    lines = ["", f"{len(result.rows)} of {result.after.rows} held-out messages:", ""]
    for row in result.rows:
        right = "✓" if row["after"].strip() == row["completion"] else "✗"
        lines += [
            f"  message  {row['prompt']}",
            f"  before   {_one_line(row['before'])}",
            f"  after  {right} {_one_line(row['after'])}",
        ]
        if right == "✗":
            lines.append(f"  wanted   {row['completion']}")
        lines.append("")
    call, base = program(), shlex.quote(settings.model)
    run_folder = shlex.quote(str(out / "run"))
    run, metrics = result.training, read_metrics(out / "run" / "metrics.jsonl")
    held_out = ", ".join(f"{m['step']}: {m['eval_loss']:.3f}" for m in metrics if "eval_loss" in m)
    before, after = result.before, result.after
    lines += [
        f"training loss over {run.steps} steps:",
        line_chart([row["loss"] for row in metrics]),
        f"held-out loss   start: {run.eval_loss_before:.3f}, {held_out}",
        "",
        f"{'':16}{'before':>8}{'after':>8}   ({after.rows} held-out messages)",
        f"{'exact match':16}{before.exact_match:>8.0%}{after.exact_match:>8.0%}",
        f"{'field accuracy':16}{before.field_accuracy:>8.0%}{after.field_accuracy:>8.0%}",
        "",
        f"method {run.method}, {run.trainable_parameters:,} of {run.total_parameters:,} parameters "
        f"trained in {run.wall_seconds:.0f} s ({run.tokens_per_second:.0f} tokens/s)",
        f"peak memory {run.peak_memory_bytes / 1e9:.2f} GB; "
        f"result {result.adapter_bytes / 1e6:.1f} MB in {run.adapter}",
        "",
        "Next, on your own rows (JSONL of prompt and completion):",
        f"  {call} generate {run_folder} --prompt '…'",
        *([] if run.method == "full" else [f"  {call} merge {run_folder} --out merged"]),
        f"  {call} train --model {base} --data rows.jsonl --out runs/mine",
    ]
    return "\n".join(lines)


def _one_line(answer: str, limit: int = 150) -> str:
    shown = " ".join(answer.split())
    return shown if len(shown) <= limit else shown[:limit] + " …"

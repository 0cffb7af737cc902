"""`graftlm train`: one training run, from a YAML file, flags, or both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli._shared import JsonOption, say

if TYPE_CHECKING:
    from graftlm.config import RunConfig
    from graftlm.training import RunResult

__all__ = ["train"]

_HIDE = {"show_default": False}


def train(
    config: Annotated[Path | None, typer.Argument(help="Settings in YAML.", **_HIDE)] = None,
    model: Annotated[str | None, typer.Option(help="The base model.", **_HIDE)] = None,
    data: Annotated[str | None, typer.Option(help="The rows to train on.", **_HIDE)] = None,
    eval_data: Annotated[str | None, typer.Option(help="The rows to measure on.", **_HIDE)] = None,
    method: Annotated[
        str | None, typer.Option(help="qlora, lora, full, or auto: what fits.", **_HIDE)
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Stay under this, such as 2GB, or do not start.", **_HIDE)
    ] = None,
    out: Annotated[str | None, typer.Option(help="The run folder.", **_HIDE)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.", **_HIDE)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting: train.learning_rate=2e-4. Repeatable.", **_HIDE),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter (or, with `--method full`, all weights).

    Example: `graftlm train --model gemma-3-270m --data rows.jsonl --steps 200 --out runs/first`

    All settings are listed in docs/settings.md. Ctrl-C writes a checkpoint;
    `graftlm train --resume --out RUN` goes on from it, bit for bit.
    """
    from graftlm.config import RunConfig, left_open, load_run_config, parse_override

    flags: list[tuple[list[str], Any]] = [
        (path, value)
        for path, value in (
            (["model", "name"], model),
            (["data", "train"], data),
            (["data", "eval"], eval_data),
            (["method"], method),
            (["memory"], memory),
            (["out"], out),
            (["train", "steps"], steps),
        )
        if value is not None
    ]
    overrides = flags + [parse_override(text) for text in set_ or []]
    if resume and config is None:
        saved = Path(out or str(RunConfig().out)) / "config.yaml"
        config = saved if saved.exists() else None
    settings = load_run_config(config, overrides)

    from graftlm.system import return_freed_memory

    return_freed_memory()
    if resume:
        settings = decided_before(settings)
    if left_open(settings) or (settings.memory is not None and not resume):
        settings = planned(settings)

    from graftlm.training import run

    result = run(settings, resume=resume)
    page = report(Path(settings.out))
    say(dataclasses.asdict(result), as_json, summary(result, settings.out) + page)
    if not result.finished:
        raise typer.Exit(1)


def report(out: Path) -> str:
    """Write the run's page; a line that names it. The result is safe, so failing is no error."""
    from graftlm.cli._shared import stderr_console
    from graftlm.errors import GraftLMError
    from graftlm.report.run_page import write_run_page

    try:
        return f"\nreport: {write_run_page(out)}"
    except GraftLMError as error:
        stderr_console().print(f"the run is saved, but not its report: {error}", highlight=False)
        return ""


def decided_before(settings: RunConfig) -> RunConfig:
    """The settings, with what they leave open taken from the run as it was started.

    The length of rows was the plan's to decide only under ``method: auto``.
    """
    from graftlm.config import load_run_config

    saved = Path(settings.out) / "config.yaml"
    if not saved.exists():
        return settings
    begun = load_run_config(saved)
    if settings.method == "auto":
        data = settings.data.model_copy(update={"max_length": begun.data.max_length})
        settings = settings.model_copy(update={"method": begun.method, "data": data})
    for section, name, open_value in (
        ("model", "embeddings", "auto"),
        ("train", "gradient_checkpointing", "auto"),
        ("train", "micro_batch_tokens", None),
    ):
        given = getattr(settings, section)
        if getattr(given, name) == open_value:
            decided = given.model_copy(update={name: getattr(getattr(begun, section), name)})
            settings = settings.model_copy(update={section: decided})
    return settings


def choice(settings: RunConfig) -> RunConfig:
    """What the plan recommends for ``settings`` and the rows they name."""
    from graftlm.planning import choose, row_lengths

    return choose(settings, row_lengths(settings))


def planned(settings: RunConfig) -> RunConfig:
    """The settings with what was left open decided so that it fits, said on stderr.

    Planned in a process of its own: what planning leaves behind (a tokenizer, a traced model, the
    libraries of both) would count in the memory of the run it was to keep small.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from graftlm.cli._shared import stderr_console

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        chosen = process.submit(choice, settings).result()
    tokens = chosen.train.micro_batch_tokens
    at_once = f", {tokens} at once" if tokens is not None else ""
    checkpointed = ", gradient checkpointing" if chosen.train.gradient_checkpointing else ""
    held = ", embeddings in 8 bits" if chosen.model.embeddings == "int8" else ""
    stderr_console().print(
        f"planned: {chosen.method}, batches of {chosen.train.batch_size} rows, each of at most "
        f"{chosen.data.max_length} tokens{at_once}{checkpointed}{held}"
    )
    return chosen


def summary(result: RunResult, out: str) -> str:
    """A finished (or stopped) run in a few lines."""
    lines = [
        f"{result.method} on {result.model}: {result.steps} steps, "
        f"{result.supervised_tokens:,} supervised tokens in {result.wall_seconds:.0f} s "
        f"({result.tokens_per_second:.0f} tokens/s)",
        f"trained {result.trainable_parameters:,} of {result.total_parameters:,} parameters; "
        f"peak memory {result.peak_memory_bytes / 1e9:.2f} GB",
    ]
    if result.train_loss is not None:
        lines.append(f"training loss {result.train_loss:.4f}")
    if result.eval_loss_before is not None and result.eval_loss_after is not None:
        lines.append(f"held-out loss {result.eval_loss_before:.4f} → {result.eval_loss_after:.4f}")
    if result.finished:
        lines.append(f"result: {result.adapter}")
        if result.method != "full":
            lines.append(f"next:   graftlm merge {out} --out merged")
    else:
        lines.append(f"stopped at step {result.steps}; graftlm train --resume --out {out}")
    return "\n".join(lines)

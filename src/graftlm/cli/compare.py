"""`graftlm compare`: full fine-tuning, LoRA and QLoRA side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli._shared import DeviceOption, JsonOption, say, stderr_console

if TYPE_CHECKING:
    from graftlm.config import RunConfig
    from graftlm.report.compare import Comparison

__all__ = ["compare"]

_HIDE = {"show_default": False}


def compare(
    model: Annotated[str, typer.Option(help="The base model.", **_HIDE)],
    data: Annotated[str, typer.Option(help="The rows to train on.", **_HIDE)],
    eval_data: Annotated[
        str | None,
        typer.Option(help="The rows to measure on. Default: a tenth of the data.", **_HIDE),
    ] = None,
    methods: Annotated[str, typer.Option(help="Which to compare.")] = "full,lora,qlora",
    ranks: Annotated[str | None, typer.Option(help="Ranks of adapters: 4,16,64.", **_HIDE)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each run.", **_HIDE)] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each method.")] = 1,
    score_rows: Annotated[
        int,
        typer.Option(help="Also answer so many held-out rows and count the right ones."),
    ] = 0,
    outside: Annotated[
        Path | None,
        typer.Option(help="Text outside the task, to see what is forgotten.", **_HIDE),
    ] = None,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("compare"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting, as for `graftlm train`. Repeatable.", **_HIDE),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train by each method on the same tokens, and say which one to take.

    Example: `graftlm compare --model gemma-3-270m --data rows.jsonl --steps 100 --out cmp`

    Short runs choose the learning rate of each (or set one for all). Each run has a process of its
    own. Stopped, the same command goes on; finished runs are kept.
    """
    config = _settings(model, data, eval_data, device, steps, set_ or [])

    from graftlm.api.compare import compare as run_comparison

    console = stderr_console()
    try:
        found = run_comparison(
            config,
            out=out,
            methods=[word.strip() for word in methods.split(",") if word.strip()],
            ranks=_numbers(ranks),
            seeds=seeds,
            outside=outside,
            score_rows=score_rows,
            progress=lambda text: console.print(f"[bold]▸ {text}", highlight=False),
        )
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        raise typer.Exit(1) from None
    page = out / "compare.html"
    if as_json:
        say(found.to_json() | {"report": str(page)}, True, "")
    else:
        _print(found, page)


def _settings(
    model: str,
    data: str,
    eval_data: str | None,
    device: str,
    steps: int | None,
    assignments: list[str],
) -> RunConfig:
    """The settings that the flags name."""
    from graftlm.config import load_run_config, parse_override

    flags: list[tuple[list[str], Any]] = [
        (path, value)
        for path, value in (
            (["model", "name"], model),
            (["data", "train"], data),
            (["data", "eval"], eval_data),
            (["device"], device),
            (["train", "steps"], steps),
        )
        if value is not None
    ]
    return load_run_config(None, flags + [parse_override(text) for text in assignments])


def _numbers(text: str | None) -> list[int]:
    from graftlm.config import shown
    from graftlm.errors import ConfigError

    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if bad := [word for word in words if not word.isdecimal() or len(word) > 7]:
        raise ConfigError(
            f"--ranks: {shown(bad[0])!r} is no rank; expected whole numbers, such as 4,16"
        )
    return [int(word) for word in words]


def _print(found: Comparison, page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from graftlm.report.compare.table import table

    shown = Table(title=f"on {found.config.model.name}", title_justify="left", box=None)
    shown.add_column("", no_wrap=True)
    for column in found.columns:
        shown.add_column(column.name, justify="right", no_wrap=True)
    for row in table(found.columns):
        cells = [f"{c.text} {c.spread}".strip() + (" ←" if c.best else "  ") for c in row.cells]
        shown.add_row(f"{row.name}{f', {row.unit}' if row.unit else ''}", *cells)
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(shown)
    console.print()
    for sentence in found.verdict:
        console.print(sentence, markup=False)
    console.print(f"\nreport: {page}", markup=False)

"""`graftlm check`: shows what a model would learn from data, and the problems in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftlm.cli._shared import JsonOption, say
from graftlm.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    from graftlm.data.audit.audit import Audit

__all__ = ["check"]

_HIDE = {"show_default": False}
_COLOURS = {"error": "bold red", "warning": "yellow", "info": "dim"}


def check(
    data: Annotated[str, typer.Argument(help="A file, folder, glob, `-`, or Hub data set.")],
    model: Annotated[str, typer.Option(help="The model that will be trained.")],
    eval_data: Annotated[str | None, typer.Option(help="The rows to measure on.", **_HIDE)] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="As in training.", **_HIDE)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A data setting: data.loss_on=last. Repeatable.", **_HIDE),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, max=1000, help="Rows to show.")] = 3,
    html: Annotated[Path | None, typer.Option(help="Write a page there, too.", **_HIDE)] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model would learn from data, and what is wrong with it.

    Example: `graftlm check rows.jsonl --model gemma-3-270m --html check.html`

    Exits with 1 where training would not do what was meant.
    """
    from graftlm.api.check import check as examine
    from graftlm.config import load_run_config, parse_override
    from graftlm.data.audit.page import audit_page
    from graftlm.files import atomic_write

    overrides = [(["data", "max_length"], max_length)] if max_length is not None else []
    config = load_run_config(None, [*overrides, *map(parse_override, set_ or [])]).data
    result = examine(data, model, eval_data=eval_data, config=config, samples=samples)
    facts = _facts(result)
    if html is not None:
        page = audit_page(result, facts, name=printable(data), model=printable(model))
        with atomic_write(html) as temporary:
            temporary.write_text(page, encoding="utf-8")
    if as_json:
        say({"data": printable(data), "model": printable(model)} | result.to_dict(), True, "")
    else:
        _print(result, facts)
    if not result.ok:
        raise typer.Exit(1)


def _facts(result: Audit) -> list[tuple[str, str]]:
    """Figures about the data, for the terminal and the page."""
    share = result.supervised_tokens / max(1, result.tokens)
    formats = ", ".join(f"{n:,} {name}" for name, n in result.formats.items())
    chats = result.kinds.get("chat")
    percentiles = ", ".join(f"{p}\u00a0{n:,}" for p, n in result.length_percentiles.items())
    return [
        ("rows", f"{result.rows:,} ({formats})" if formats else f"{result.rows:,}"),
        ("examples", f"{result.examples:,}"),
        ("chat template", result.template if chats else f"{result.template} (not used)"),
        ("asked with", f"{result.asked}: {result.asked_text!r}"),
        ("tokens", f"{result.tokens:,}"),
        ("learned tokens", f"{result.supervised_tokens:,} ({share:.1%})"),
        ("tokens a row", percentiles),
        (
            "max_length",
            f"{result.max_length} set, {result.recommended_max_length} recommended",
        ),
        (
            "lost to max_length",
            f"{result.too_long:,} dropped, {result.truncated:,} cut, {result.split:,} split",
        ),
        (
            "padding",
            f"{result.padding_share:.1%} of the positions in batches by length; "
            f"{1 - result.packing_efficiency:.1%} when packed",
        ),
    ]


def _print(result: Audit, facts: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    table = Table.grid(padding=(0, 2))
    for label, value in facts:
        table.add_row(Text(label, style="dim"), Text(printable(value), overflow="fold"))
    console.print(table)
    _print_histogram(console, result)
    for sample in result.samples:
        console.rule(f"{sample.tokens} tokens; green is learned", style="dim")
        text = Text()
        for piece, learned in sample.pieces:
            text.append(printable(piece), style="bold green" if learned else "dim")
        console.print(text)
    console.rule(style="dim")
    for finding in result.findings:
        line = Text(f"{finding.severity:>7} ", style=_COLOURS[finding.severity])
        said = printable(f"{finding.count:,} {finding.message}")
        line.append(said, style="default not bold")
        console.print(line)
        for place in finding.places:
            console.print(Text(f"        {printable(place)}", style="dim"))
    verdict = Text("Ready to train.", style="bold green")
    if not result.ok:
        count = sum(finding.severity == "error" for finding in result.findings)
        verdict = Text(f"Training on this would not do what was meant ({count} errors).")
        verdict.stylize("bold red")
    console.print(verdict)


def _print_histogram(console: Console, result: Audit) -> None:
    from rich.text import Text

    most = max((rows for _, rows in result.length_histogram), default=0)
    for upto, rows in ((upto, rows) for upto, rows in result.length_histogram if rows):
        bar = "█" * -(-40 * rows // most)
        console.print(Text(f"  ≤ {upto:>6} {rows:>9,} ").append(bar, style="blue"))

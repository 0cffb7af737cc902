"""`graftlm merge`: merge an adapter into its base, after measuring every way to do so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graftlm.cli._shared import JsonOption, finite_number, say, stderr_console

__all__ = ["merge"]

_HIDE = {"show_default": False}


def merge(
    adapter: Annotated[Path, typer.Argument(help="A PEFT adapter folder, or a run folder.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    to: Annotated[
        str,
        typer.Option(help="`16bit`, or `nf4`: a 4-bit checkpoint that bitsandbytes reads."),
    ] = "16bit",
    base: Annotated[
        str | None,
        typer.Option(help="The base model; default: the one the adapter names.", **_HIDE),
    ] = None,
    onto: Annotated[
        str | None,
        typer.Option(
            help="Take this 16-bit merge, not the best: `original`: onto the 16-bit base; `nf4`: "
            "onto the dequantised 4-bit base the adapter was trained on.",
            **_HIDE,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Rows to compare on; default: the run's held-out rows, else its training rows, "
            "else a text that comes with graftlm.",
            **_HIDE,
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Rows that a 4-bit merge is fitted to; default: the run's.", **_HIDE),
    ] = None,
    least_kept: Annotated[
        float,
        typer.Option(
            help="Refuse a merge that keeps a smaller share of the tune.",
            min=0,
            max=1,
            callback=finite_number,
        ),
    ] = 0.9,
    force: Annotated[bool, typer.Option("--force", help="Write it even if it keeps less.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into one model again, W' = W + (α/r) B A, and prove what was written.

    Example: `graftlm merge runs/first --out merged`

    Every way to merge is measured beside the live adapter; the best one of the kind is written,
    with merge_report.json and merge_report.html. What was written is opened again and compared.
    """
    from graftlm.api.merge import merge as measured_merge

    console = stderr_console()
    report = measured_merge(
        adapter,
        out,
        to=to,
        base=base,
        onto=onto,
        data=data,
        calibrate=calibrate,
        least_kept=least_kept,
        force=force,
        progress=lambda what: console.print(f"[dim]{what}[/dim]", highlight=False),
    )
    say(report, as_json, summary(report))


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    lines = [
        f"{'':22} {'loss':>8} {'KL':>9} {'agreement':>9} {'kept':>7}",
        f"{'base':22} {report['base_loss']:8.4f}",
        f"{'live adapter':22} {report['live_loss']:8.4f}",
    ]
    for one in report["candidates"]:
        mark = "  ← written" if one["kind"] == report["chosen"] else ""
        lines.append(
            f"{one['kind']:22} {one['loss']:8.4f} {one['kl']:9.5f} {one['agreement']:9.1%} "
            f"{one['kept']:7.1%}{mark}"
        )
    proof = report["proof"]
    lines += [
        f"proof: {proof['tensors_applied']} of {proof['tensors_expected']} tensors applied; "
        f"opened again, {proof['distance']:.1e} of the adapter's effect away from what was "
        "measured",
        f"result: {report['out']} ({report['bytes'] / 1e9:.2f} GB)",
    ]
    return "\n".join(lines)

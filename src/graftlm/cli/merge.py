"""`graftlm merge`: merge an adapter into its base, as a plain transformers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graftlm.cli._shared import JsonOption, say

__all__ = ["merge"]


def merge(
    adapter: Annotated[Path, typer.Argument(help="A PEFT adapter folder, or a run folder.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="The base model; default: the one the adapter names.", show_default=False
        ),
    ] = None,
    onto: Annotated[
        str | None,
        typer.Option(
            help="`original`: the 16-bit base; `nf4`: the dequantised 4-bit base the adapter was "
            "trained on. Default: what the adapter was trained on.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into one model again: W' = W + (α/r) B A.

    Example: `graftlm merge runs/first --out merged`
    """
    from graftlm.export.merge import merge_to_folder

    report = merge_to_folder(adapter, out, base=base, onto=onto)
    say(report, as_json, "\n".join(f"{name}: {value}" for name, value in report.items()))

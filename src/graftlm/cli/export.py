"""`graftlm export`: write an adapter in a form for another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graftlm.cli._shared import JsonOption, say

__all__ = ["export"]


def export(
    adapter: Annotated[Path, typer.Argument(help="A PEFT adapter folder, or a run folder.")],
    to: Annotated[
        str,
        typer.Option(
            help="The form: `transformers` (merged), `peft`, `vllm`, `gguf`, `gguf-adapter`, "
            "`ollama`, `mlx`, or one of your own."
        ),
    ],
    out: Annotated[Path, typer.Option(help="What to write.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="The base model; default: the one the adapter names.", show_default=False
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            help="Of the weights in a GGUF: f16, bf16, f32, q8_0 or q4_0.", show_default=False
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run what was written beside the live adapter.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write an adapter in the form another tool takes, and prove it on request.

    Example: `graftlm export runs/first --to gguf --quantization q8_0 --out first.gguf`
    """
    from graftlm.export import export as write

    report = write(adapter, to, out, base=base, quantization=quantization, verify=verify)
    say(report, as_json, "\n".join(f"{name}: {value}" for name, value in report.items()))

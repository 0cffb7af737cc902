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
        str | None,
        typer.Option(
            help="The form: `transformers` (merged), `peft`, `vllm`, `gguf`, `gguf-adapter`, "
            "`ollama`, `mlx`, or one of your own.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="What to write.", show_default=False)] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base model; default: the one the adapter names.", show_default=False
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            help="Of the weights in a GGUF: f16, bf16, f32, q8_0 or q4_0; with llama-cpp-python "
            "also q4_k_m, q5_k_m or q6_k.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run what was written beside the live adapter.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only say which rules of the form, or without --to of each form, are broken.",
        ),
    ] = False,
    push_to: Annotated[
        str | None,
        typer.Option(
            help="Upload the result to this repository of the Hugging Face Hub.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an adapter in the form another tool takes, and prove it on request.

    Example: `graftlm export runs/first --to gguf --quantization q8_0 --out first.gguf`
    """
    from graftlm.errors import ConfigError
    from graftlm.exporting import export as write
    from graftlm.exporting.rules import broken_rules

    if check:
        rules = broken_rules(adapter, base, [] if to is None else [to])
        say({"adapter": str(adapter), "targets": rules}, as_json, _told(rules))
        raise typer.Exit(int(to is not None and bool(rules[to])))
    if to is None or out is None:
        raise ConfigError("name the form (--to) and what to write (--out), or ask with --check")
    report = write(
        adapter, to, out, base=base, quantization=quantization, verify=verify, push_to=push_to
    )
    say(report, as_json, "\n".join(f"{name}: {value}" for name, value in report.items()))


def _told(rules: dict[str, list[str]]) -> str:
    return "\n".join(
        f"{name}: {'yes' if not problems else 'no'}" + "".join(f"\n  {one}" for one in problems)
        for name, problems in rules.items()
    )

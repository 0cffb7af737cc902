"""`graftlm studio`: the whole way on one local page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graftlm.cli._shared import JsonOption

__all__ = ["studio"]

_HIDE = {"show_default": False}


def studio(
    runs: Annotated[Path, typer.Option(help="The folder of the runs.")] = Path("runs"),
    models: Annotated[
        Path | None, typer.Option(help="A folder of models to choose from.", **_HIDE)
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 7860,
    host: Annotated[
        str, typer.Option(help="The address to listen on; others than 127.0.0.1 are reachable.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name by which browsers reach this server. Repeatable.", **_HIDE
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the whole way on a page in your browser: rows, plan, training, comparison, chat, export.

    Example: `graftlm studio --runs runs`

    The page is served to this machine only, under a link with a token. What it starts are
    commands of graftlm, which it shows; closing the page or ending the server ends no run.
    """
    from graftlm.studio.serve import serve

    serve(
        runs,
        models=models,
        host=host,
        port=port,
        allowed=allow_host or [],
        open_page=open_,
        as_json=as_json,
    )

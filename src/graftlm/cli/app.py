"""The list of commands, and the handling of failures.

Exit code 0: done; 1: the work failed; 2: the request was wrong. Messages go to stderr without a
traceback, unless ``--debug`` is given.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from graftlm import __version__
from graftlm.cli.chat import chat
from graftlm.cli.check import check
from graftlm.cli.compare import compare
from graftlm.cli.demo import demo
from graftlm.cli.doctor import doctor
from graftlm.cli.ending import end_at_second_interrupt, exit_code_of, flush, prepare_streams
from graftlm.cli.eval import evaluate
from graftlm.cli.export import export
from graftlm.cli.generate import generate
from graftlm.cli.merge import merge
from graftlm.cli.plan import plan
from graftlm.cli.quantize import quantize
from graftlm.cli.serve import serve
from graftlm.cli.studio import studio
from graftlm.cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="graftlm",
    help="Fine-tune a language model by LoRA or QLoRA on the hardware you have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    *(demo, doctor, plan, check, quantize, train, compare, merge, export),
    *(generate, chat, serve),
)
for command in COMMANDS:
    app.command()(command)
app.command("eval")(evaluate)
app.command()(studio)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"graftlm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say more on stderr: what of a model is replaced.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Options of every command; `--debug` is taken out of the arguments by `main`."""
    if verbose:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log = logging.getLogger("graftlm")
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def _at_home(word: str) -> str:
    """``--out=~/runs`` with the home folder in it: a shell leaves the ``~`` after a ``=``."""
    name, equals, value = word.rpartition("=")
    is_place = equals and name != "--prompt" and re.fullmatch(r"(--)?[\w.-]+", name)
    if not is_place or not value.startswith("~/"):
        return word
    return f"{name}{equals}{Path(value).expanduser()}"


def main() -> None:
    """Run the command line and exit with the contract's codes."""
    debug = "--debug" in sys.argv
    arguments = [_at_home(word) for word in sys.argv[1:] if word != "--debug"]
    prepare_streams()
    end_at_second_interrupt()
    code = exit_code_of(lambda: app(args=arguments, prog_name="graftlm"), debug)
    sys.exit(code or flush())

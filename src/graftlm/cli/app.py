"""The list of commands, and what happens when one fails.

Exit code 0: done; 1: the work failed; 2: the request was wrong. Messages go to stderr without a
traceback, unless ``--debug`` is given.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from graftlm.cli.chat import chat
from graftlm.cli.check import check
from graftlm.cli.compare import compare
from graftlm.cli.demo import demo
from graftlm.cli.doctor import doctor
from graftlm.cli.eval import evaluate
from graftlm.cli.generate import generate
from graftlm.cli.merge import merge
from graftlm.cli.plan import plan
from graftlm.cli.quantize import quantize
from graftlm.cli.train import train
from graftlm.errors import GraftLMError

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
for command in (demo, doctor, plan, check, quantize, train, compare, merge, generate, chat):
    app.command()(command)
app.command("eval")(evaluate)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options of every command; `--debug` is taken out of the arguments by `main`."""


def main() -> None:
    """Run the command line and exit with the contract's codes."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        app(args=arguments, prog_name="graftlm")
    except GraftLMError as error:
        if debug:
            raise
        _complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away, as `| head` does
        sys.exit(1)


def _complain(message: str) -> None:
    lines = message.splitlines() or [""]
    print(f"error: {lines[0]}", file=sys.stderr)
    for line in lines[1:]:
        print(f"       {line}", file=sys.stderr)

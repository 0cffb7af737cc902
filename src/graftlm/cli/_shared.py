"""Code that several commands share."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "MOST_TOKENS",
    "AdapterOption",
    "DeviceOption",
    "JsonOption",
    "ModelArgument",
    "QuantizeOption",
    "SeedOption",
    "TemperatureOption",
    "finite_number",
    "open_model",
    "say",
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
ModelArgument = Annotated[
    str, typer.Argument(help="A folder, a Hub id, a .gguf file, or a built-in: gemma-3-270m.")
]
AdapterOption = Annotated[
    str | None, typer.Option(help="A PEFT adapter folder, or a run folder.", show_default=False)
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:1, xpu or mps; auto: an accelerator with room for the model, else "
        "the CPU."
    ),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        help="Hold the base in a weight format (`nf4`: 4 bits) or as it is (`none`). "
        "Default: as the adapter was trained, else as it is.",
        show_default=False,
    ),
]


def finite_number(value: float) -> float:
    """Refuse NaN and infinity, which a range lets through or should."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number to compute with")
    return value


MOST_TOKENS = 1_000_000
"""More in one answer than any model has positions for."""
TemperatureOption = Annotated[
    float, typer.Option(min=0, max=100, help="0 is greedy.", callback=finite_number)
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="For a temperature above 0.")]


def say(result: dict[str, Any], as_json: bool, text: str) -> None:
    """Print ``result`` as one JSON object on stdout, or ``text`` for people.

    JSON has no NaN and no infinity: both become null.
    """
    if not as_json:
        print(text)
        return
    from graftlm.files import finite  # with what it imports, 5 ms that `--help` does not need

    ascii_only = sys.stdout.encoding.lower().replace("-", "") != "utf8"
    print(json.dumps(finite(result), ensure_ascii=ascii_only, allow_nan=False))


def program() -> str:
    """How to call graftlm again: its name, or Python with it where that is not on the path."""
    if shutil.which("graftlm") is not None:
        return "graftlm"
    return f"{shlex.quote(sys.executable)} -m graftlm"


def stderr_console() -> Console:
    """The console for progress and logs."""
    from rich.console import Console

    return Console(stderr=True)


def open_model(
    model: str,
    adapter: str | None,
    quantize: str | None,
    device: str,
    name: str = "default",
) -> tuple[Any, Any]:
    """Load ``model`` with ``adapter``, if given, and the tokenizer of its training.

    The adapter has the name ``name`` in the model.
    """
    from graftlm.adapters.open_model import open_model as opened  # it loads torch

    return opened(model, adapter, quantize, device, name)

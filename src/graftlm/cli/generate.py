"""`graftlm generate`: continue one prompt."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from graftlm.cli import _answers
from graftlm.cli._shared import (
    MOST_TOKENS,
    AdapterOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    QuantizeOption,
    SeedOption,
    TemperatureOption,
    say,
)

__all__ = ["generate"]


def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option(help="What to ask, as in the training rows.")],
    adapter: AdapterOption = None,
    quantize: QuantizeOption = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="Stop after so many tokens.")
    ] = 200,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            help="`chat`: as a turn of the chat template; `plain`: as plain text; `auto`: as the "
            "model was trained, which its template says.",
        ),
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Write the model's answer to a prompt.

    Example: `graftlm generate gemma-3-270m --adapter runs/first --prompt "two pizzas at 7pm"`

    A .gguf file is run by llama.cpp where `llama-cpp-python` is installed.
    """
    from graftlm.api.generate import Opened, require_layout
    from graftlm.models.decoding.choice import Sampling
    from graftlm.models.decoding.row import Ask

    require_layout(layout)
    opened = Opened(model, adapter, quantize, device)
    form = opened.layout(layout)
    ids = opened.tokens(prompt, form)
    row = None
    for row in _answers.written(
        opened.writer, Ask(ids, max_new_tokens, Sampling(temperature, seed=seed), opened.stop)
    ):
        if not as_json:
            print(row.piece, end="", flush=True)
    assert row is not None, "an answer has at least one token"
    if row.reason != "stop" and row.tokens < max_new_tokens:
        print("the answer ends where the model's positions end", file=sys.stderr)
    result = {
        "prompt": prompt,
        "format": form,
        "text": row.text,
        "tokens": row.tokens,
        "stopped": row.reason == "stop",
    }
    say(result, as_json, "")
    opened.writer.close()

"""`graftlm generate`: continue one prompt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from graftlm.cli import _answers
from graftlm.cli._shared import (
    AdapterOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    QuantizeOption,
    in_llama_cpp,
    open_model,
    run_named,
    say,
)

if TYPE_CHECKING:
    from graftlm.serve.engine import Writer

__all__ = ["generate"]


def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option(help="What to ask, as in the training rows.")],
    adapter: AdapterOption = None,
    quantize: QuantizeOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="For a temperature above 0.")] = 0,
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
    from graftlm.data import render_prompt, stop_tokens
    from graftlm.data.prompt_format import format_in
    from graftlm.errors import ConfigError
    from graftlm.models.decoding.choice import Sampling
    from graftlm.models.decoding.row import Ask
    from graftlm.models.decoding.whole import writer_for
    from graftlm.serve.llama import LlamaWriter

    if layout not in ("auto", "chat", "plain"):
        raise ConfigError(f"--format {layout!r}: expected auto, chat or plain")
    llama = in_llama_cpp(model, adapter, quantize)
    writer: Writer
    if llama is not None:
        plain, writer = llama.plain, LlamaWriter(llama)
    else:
        loaded, tokenizer = open_model(*run_named(model, adapter), quantize, device)
        plain = format_in(tokenizer.chat_template) is not None or not tokenizer.chat_template
        writer = writer_for(loaded, tokenizer)
    if layout == "auto":
        layout = "plain" if plain else "chat"
    asked = prompt if layout == "plain" else [{"role": "user", "content": prompt}]
    ids = render_prompt(asked, tokenizer) if llama is None else llama.prompt(asked)
    stop = frozenset(stop_tokens(tokenizer)) if llama is None else frozenset()
    row = None
    for row in _answers.written(
        writer, Ask(tuple(ids), max_new_tokens, Sampling(temperature, seed=seed), stop)
    ):
        if not as_json:
            print(row.piece, end="", flush=True)
    assert row is not None, "an answer has at least one token"
    if row.reason != "stop" and row.tokens < max_new_tokens:
        print("the answer ends where the model's positions end", file=sys.stderr)
    result = {
        "prompt": prompt,
        "format": layout,
        "text": row.text,
        "tokens": row.tokens,
        "stopped": row.reason == "stop",
    }
    say(result, as_json, "")
    writer.close()

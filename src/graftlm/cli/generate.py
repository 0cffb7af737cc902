"""`graftlm generate`: continue one prompt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

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
    from graftlm.models import Answer

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
    from graftlm.models import generate_text

    if layout not in ("auto", "chat", "plain"):
        raise ConfigError(f"--format {layout!r}: expected auto, chat or plain")
    if (llama := in_llama_cpp(model, adapter, quantize)) is not None:
        if layout == "auto":
            layout = "plain" if llama.plain else "chat"
        asked = prompt if layout == "plain" else [{"role": "user", "content": prompt}]
        answer = llama.answer(llama.prompt(asked), max_new_tokens, temperature, seed)
        llama.close()
        _say(prompt, layout, answer, as_json)
        return
    loaded, tokenizer = open_model(*run_named(model, adapter), quantize, device)
    if layout == "auto":
        plain = format_in(tokenizer.chat_template) is not None or not tokenizer.chat_template
        layout = "plain" if plain else "chat"
    asked = prompt if layout == "plain" else [{"role": "user", "content": prompt}]
    ids = render_prompt(asked, tokenizer)
    answer = generate_text(
        loaded,
        tokenizer,
        [ids],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        stop=stop_tokens(tokenizer),
    )[0]
    if not answer.stopped and answer.tokens < max_new_tokens:
        print("the answer ends where the model's positions end", file=sys.stderr)
    _say(prompt, layout, answer, as_json)


def _say(prompt: str, layout: str, answer: Answer, as_json: bool) -> None:
    result = {
        "prompt": prompt,
        "format": layout,
        "text": answer.text,
        "tokens": answer.tokens,
        "stopped": answer.stopped,
    }
    say(result, as_json, answer.text)

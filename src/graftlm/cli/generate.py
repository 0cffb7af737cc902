"""`graftlm generate`: continue one prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from graftlm.cli._shared import (
    AdapterOption,
    JsonOption,
    ModelArgument,
    QuantizeOption,
    open_model,
    say,
)

__all__ = ["generate"]


def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option(help="The prompt, as in the training rows.")],
    adapter: AdapterOption = None,
    quantize: QuantizeOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="For a temperature above 0.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write the model's answer to a prompt.

    Example: `graftlm generate gemma-3-270m --adapter runs/first --prompt "two pizzas at 7pm"`
    """
    from graftlm.data import render_prompt, stop_tokens
    from graftlm.models import generate_text

    loaded, tokenizer = open_model(model, adapter, quantize)
    ids = render_prompt(prompt, tokenizer)
    answer = generate_text(
        loaded,
        tokenizer,
        [ids],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        stop=stop_tokens(tokenizer),
    )[0]
    say(
        {"prompt": prompt, "text": answer.text, "tokens": answer.tokens, "stopped": answer.stopped},
        as_json,
        answer.text,
    )

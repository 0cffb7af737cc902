"""`graftlm chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from graftlm.cli._shared import (
    AdapterOption,
    DeviceOption,
    ModelArgument,
    QuantizeOption,
    in_llama_cpp,
    open_model,
    run_named,
)

__all__ = ["chat"]


def chat(
    model: ModelArgument,
    adapter: AdapterOption = None,
    quantize: QuantizeOption = None,
    system: Annotated[
        str | None, typer.Option(help="A system message.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 500,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    seed: Annotated[int, typer.Option(help="For a temperature above 0.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Talk to a model. An empty line or Ctrl-D ends the talk.

    Example: `graftlm chat gemma-3-270m --adapter runs/first`

    A model that was trained on plain prompts, without turns, is asked each message by itself, as
    in its training. A .gguf file is run by llama.cpp where `llama-cpp-python` is installed.
    """
    from graftlm.data import render_prompt, stop_tokens
    from graftlm.data.prompt_format import format_in
    from graftlm.errors import ConfigError
    from graftlm.models import generate_text

    llama = in_llama_cpp(model, adapter, quantize)
    if llama is None:
        loaded, tokenizer = open_model(*run_named(model, adapter), quantize, device)
    trained_plain = format_in(tokenizer.chat_template if llama is None else llama.template)
    if trained_plain is not None:
        if system:
            raise ConfigError("--system: the model was trained on plain prompts, without turns")
        note = f"trained on {trained_plain}: each message is asked by itself"
        print(note, file=sys.stderr)
    messages = [{"role": "system", "content": system}] if system else []
    while True:
        print("you> ", end="", flush=True, file=sys.stderr)
        line = sys.stdin.readline()
        if not line.strip():
            return
        if trained_plain is not None:
            messages.clear()
        messages.append({"role": "user", "content": line.strip()})
        drawn = seed + len(messages)
        if llama is not None:
            asked = messages if trained_plain is None else messages[-1]["content"]
            answer = llama.answer(llama.prompt(asked), max_new_tokens, temperature, drawn)
        else:
            answer = generate_text(
                loaded,
                tokenizer,
                [render_prompt(messages, tokenizer)],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=drawn,
                stop=stop_tokens(tokenizer),
            )[0]
        print(answer.text, flush=True)
        messages.append({"role": "assistant", "content": answer.text})

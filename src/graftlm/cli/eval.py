"""`graftlm eval`: the held-out loss of a model, with or without an adapter."""

from __future__ import annotations

import dataclasses
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

__all__ = ["evaluate"]


def evaluate(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help="The rows to measure on.")],
    adapter: AdapterOption = None,
    quantize: QuantizeOption = None,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens.", min=2)] = 512,
    batch_size: Annotated[int, typer.Option(help="Rows a forward pass.", min=1)] = 8,
    as_json: JsonOption = False,
) -> None:
    """Measure loss and perplexity on rows.

    Example: `graftlm eval gemma-3-270m --adapter runs/first --data held-out.jsonl`
    """
    from graftlm.config import DataConfig
    from graftlm.data.examples import load_examples
    from graftlm.train import evaluate as measure

    loaded, tokenizer = open_model(model, adapter, quantize)
    examples = load_examples(data, tokenizer, DataConfig(train=data, max_length=max_length))
    result = measure(loaded, examples, batch_size)
    text = (
        f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.3f}, "
        f"on {result.supervised_tokens:,} supervised tokens of {result.rows:,} rows"
    )
    say(dataclasses.asdict(result) | {"model": model, "adapter": adapter}, as_json, text)

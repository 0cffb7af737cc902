"""`graftlm eval`: the held-out loss of a model, with or without an adapter."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.api.opening import run_named
from graftlm.cli._shared import (
    AdapterOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    QuantizeOption,
    open_model,
    say,
)

if TYPE_CHECKING:
    from graftlm.config import DataConfig

__all__ = ["evaluate"]

_HIDE = {"show_default": False}
_USED = (
    *("chat_template", "columns", "format", "ignore", "loss_on"),
    *("max_length", "separator", "truncation", "workers"),
)


def evaluate(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help="The rows to measure on.")],
    adapter: AdapterOption = None,
    quantize: QuantizeOption = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longest row in tokens.", min=2, **_HIDE)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a forward pass.", min=1, max=4096)] = 8,
    device: DeviceOption = "auto",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A data setting: data.loss_on=last. Repeatable.", **_HIDE),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure loss and perplexity on rows.

    Example: `graftlm eval gemma-3-270m --adapter runs/first --data held-out.jsonl`

    The result of a run is measured on rows read as that run read its own: with its chat template,
    column names, layout, longest row, and choice of what is learned. `--set` changes any of these.
    """
    from graftlm.data.audit.before_training import require_fit
    from graftlm.data.audit.fits import limits_of
    from graftlm.data.examples import load_examples
    from graftlm.errors import TrainingError
    from graftlm.training import evaluate as measure

    asked = _asked_for(max_length, set_ or [])
    model, adapter = run_named(model, adapter)
    loaded, tokenizer = open_model(model, adapter, quantize, device)
    config = _data_settings(model, adapter, tokenizer, asked)
    examples = load_examples(data, tokenizer, config, purpose="eval")
    require_fit(examples, limits_of(loaded.config.to_dict()))
    for line in examples.report.said(data, config.max_length):
        print(line, file=sys.stderr)
    result = measure(loaded, examples, batch_size)
    if not math.isfinite(result.loss):
        raise TrainingError(
            f"the loss is {result.loss}: {model} computes numbers that are not finite. Check its "
            "weights and its config.json against the original's."
        )
    text = (
        f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.3f}, "
        f"on {result.supervised_tokens:,} supervised tokens of {result.rows:,} rows"
    )
    told = {"model": model, "adapter": adapter, "data": config.model_dump(include=set(_USED))}
    say(dataclasses.asdict(result) | told, as_json, text)


def _asked_for(max_length: int | None, changes: Sequence[str]) -> list[tuple[list[str], Any]]:
    """The user's settings, by path; refuses those that have no effect here."""
    from graftlm.config import load_run_config, parse_override
    from graftlm.errors import ConfigError, near_matches

    asked = [parse_override(text) for text in changes]
    usable = [f"data.{name}" for name in _USED]
    if odd := [name for keys, _ in asked if (name := ".".join(keys[:2])) not in usable]:
        raise ConfigError(
            [f"eval does not use {name}{near_matches(name, usable)}" for name in odd]
            + [f"expected one of {', '.join(usable)}"]
        )
    if max_length is not None:
        asked.insert(0, (["data", "max_length"], max_length))
    load_run_config(None, asked)  # refuses bad values before a model is loaded
    return asked


def _data_settings(
    model: str, adapter: str | None, tokenizer: Any, asked: Sequence[tuple[list[str], Any]]
) -> DataConfig:
    """How rows become tokens: the settings of the run that made the model, then the user's.

    Without a run folder, the chat template tells the prompt form of the training.
    """
    from graftlm.adapters.adapter_folder import recorded_settings
    from graftlm.config import load_run_config
    from graftlm.data.prompt_format import format_in

    run = recorded_settings(model, adapter)
    recorded = format_in(tokenizer.chat_template)
    kept: dict[str, Any] = {}
    if run is not None:
        kept = run.data.model_dump(include=set(_USED))
    elif recorded is not None:
        kept["separator"] = recorded.separator
    elif adapter is not None and tokenizer.chat_template:
        kept["format"] = "chat"
    return load_run_config(None, [*((["data", n], v) for n, v in kept.items()), *asked]).data

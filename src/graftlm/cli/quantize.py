"""`graftlm quantize`: a model folder in 4-bit NF4, readable by transformers and bitsandbytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graftlm.cli._shared import JsonOption, ModelArgument, say

__all__ = ["quantize"]


def quantize(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    block_size: Annotated[int, typer.Option(help="Weights that share one scale.")] = 64,
    double_quant: Annotated[
        bool, typer.Option(help="Store the scales in 8 bits: 4.127 bits a weight, not 4.5.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write a model in 4 bits, a shard at a time.

    Example: `graftlm quantize gemma-3-270m --out gemma-nf4`

    The folder opens memory-mapped here, and with transformers and bitsandbytes elsewhere.
    """
    from graftlm.config import ModelConfig, validate
    from graftlm.models import quantize_folder

    settings = validate(
        ModelConfig, {"name": model, "block_size": block_size, "double_quant": double_quant}
    )
    report = quantize_folder(
        model, out, block_size=settings.block_size, double_quant=settings.double_quant
    )
    say(report, as_json, "\n".join(f"{name}: {value}" for name, value in report.items()))

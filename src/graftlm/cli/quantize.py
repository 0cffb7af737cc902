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
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Fit the 4-bit weights to these rows; `shipped`: to a text in many languages that "
            "comes with graftlm.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model in 4 bits, a shard at a time.

    Example: `graftlm quantize gemma-3-270m --out gemma-nf4 --calibrate shipped`

    The folder opens memory-mapped here, and with transformers and bitsandbytes elsewhere.
    """
    from graftlm.config import ModelConfig, validate
    from graftlm.models import quantize_folder
    from graftlm.models.quantize_calibrated import quantize_calibrated

    settings = validate(
        ModelConfig, {"name": model, "block_size": block_size, "double_quant": double_quant}
    )
    block, double = settings.block_size, settings.double_quant
    if calibrate is None:
        report = quantize_folder(model, out, block, double)
    else:
        report = quantize_calibrated(model, out, calibrate, block, double)
    say(report, as_json, "\n".join(f"{name}: {value}" for name, value in report.items()))

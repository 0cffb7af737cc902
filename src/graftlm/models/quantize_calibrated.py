"""Writes a model folder in a weight format that is fitted to calibration rows (`calibrate.py`).

The result has the size and the form of a plainly rounded one. Its layers give nearer to the outputs
of the 16-bit model on text like the rows, and, less so, on other text.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from graftlm.config import DataConfig
from graftlm.data.example import Example
from graftlm.data.examples import load_examples
from graftlm.data.shipped_text import shipped_examples
from graftlm.errors import ConfigError, ModelError
from graftlm.files import atomic_folder, require_free_space
from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.formats import DEFAULT_FORMAT, format_named
from graftlm.frozen.weight import WeightSettings
from graftlm.models.calibrate import calibrate
from graftlm.models.load import load_tokenizer
from graftlm.models.named_weights import named_weights
from graftlm.models.source import resolve
from graftlm.models.stored_folder import (
    storable_experts,
    storable_layers,
    stored_bytes,
    write_folder,
)
from graftlm.system import return_freed_memory

__all__ = ["SHIPPED", "calibration_rows", "quantize_calibrated"]

SHIPPED = "shipped"
"""The name, in `graftlm quantize --calibrate`, of the text that comes with graftlm."""
WINDOW, SHORTEST_WINDOW = 256, 64
MOST_TOKENS = 32768
"""Of the source of rows; the shipped text has about 7,000 more."""


def calibration_rows(data: str, tokenizer: Any, most_tokens: int = MOST_TOKENS) -> list[Example]:
    """The rows to calibrate on: of a source of rows, then the shipped text.

    The shipped text is there in any case: a base that is fitted to rows of one kind alone is hardly
    nearer to 16 bits on other text. Its windows are as long as the longest row, since a batch is
    padded to that.

    Raises:
        DataError: the rows cannot be read.
    """
    if data == SHIPPED:
        return shipped_examples(tokenizer, WINDOW)
    config = DataConfig(max_length=WINDOW, truncation="split", loss_on="all")
    chosen: list[Example] = []
    for row in load_examples(data, tokenizer, config):
        most_tokens -= len(row)
        if most_tokens < 0 and chosen:
            break
        chosen.append(row)
    longest = max(map(len, chosen), default=WINDOW)
    return chosen + shipped_examples(tokenizer, max(longest, SHORTEST_WINDOW))


def quantize_calibrated(
    name: str | Path,
    out: str | Path,
    data: str = SHIPPED,
    block_size: int = 64,
    double_quant: bool = True,
    weight_format: str = DEFAULT_FORMAT,
) -> dict[str, Any]:
    """Write a model with its linear layers in a format, fitted to rows.

    Peak memory is one layer and the activations of the rows, twice.

    Args:
        name: a folder, a Hub id, a `.gguf` file or a built-in name, in 16 or 32 bits.
        out: the folder to create.
        data: the rows, which the text that comes with graftlm joins, or ``shipped`` for it alone.
        block_size: weights that share one scale.
        double_quant: whether the scales themselves are stored in 8 bits.
        weight_format: a registered format that has a form on disk and `quantize_for`.

    Returns:
        ``out``, ``quantized_layers``, ``quantized_experts`` (matrices; they are rounded plainly),
        ``rounded_plainly`` (the layers that are too, since the model reads their weights without
        calling them), ``calibration``, ``calibration_tokens``, ``bytes`` and ``bytes_before``.

    Raises:
        ConfigError: the format is not registered, or cannot be calibrated or written.
        DataError: the rows cannot be read.
        ModelError: the model cannot be read, is quantised already or cannot run from the disk.
        ResourceError: the disk is too small, or ``out`` exists or cannot be written to.
    """
    return_freed_memory()
    format, settings = format_named(weight_format), WeightSettings(block_size, double_quant)
    if format.checkpoint is None:
        raise ConfigError(f"weight format {weight_format!r} has no form on disk")
    source = resolve(name)
    weights = named_weights(source.path, str(name))
    if weights.stored:
        raise ModelError(f"{name} is quantised already. Start from the model in 16 or 32 bits.")
    layers, fused = storable_layers(weights), storable_experts(weights)

    def experts(name: str) -> FrozenExperts:
        return FrozenExperts.of(weights(name), fused[name].transposed, format, settings)

    tokenizer = load_tokenizer(name)
    rows = calibration_rows(data, tokenizer)
    require_free_space(out, 2 * stored_bytes(weights, True) + 100_000_000, "Quantising")
    with atomic_folder(out) as folder, tempfile.TemporaryDirectory(dir=folder) as spill:
        made = calibrate(
            weights,
            weights,
            layers,
            rows,
            tokenizer.pad_token_id,
            format,
            settings,
            Path(spill),
        )
        place = folder / "model"
        place.mkdir()
        nbytes = write_folder(
            place,
            weights,
            weights,
            stored=made.__getitem__,
            experts=experts,
            format=format,
            settings=settings,
        )
        for file in place.iterdir():
            file.rename(folder / file.name)
        place.rmdir()
    return {
        "out": str(out),
        "quantized_layers": len(layers),
        "quantized_experts": sum(weight.shape[0] for weight in fused.values()),
        "rounded_plainly": [weight.removesuffix(".weight") for weight in made.plain],
        "calibration": data,
        "calibration_tokens": sum(map(len, rows)),
        "bytes": nbytes,
        "bytes_before": sum(stored.nbytes for stored in weights.checkpoint.values()),
    }

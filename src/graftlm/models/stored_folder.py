"""Writes a model folder from weights by name, its linear layers in a weight format if given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from graftlm.errors import ConfigError
from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.weight import FrozenWeight, StorageSettings
from graftlm.models.experts import ExpertWeight, expert_weights
from graftlm.models.load import pick_dtype
from graftlm.models.named_weights import NamedWeights
from graftlm.models.saved_config import write_config
from graftlm.models.shard_writer import ShardWriter, copy_companions
from graftlm.models.stored_experts import write_experts
from graftlm.models.streamed import Reader
from graftlm.models.streaming import linear_layers, unquantized_names

__all__ = ["STORED_BYTES", "storable_experts", "storable_layers", "stored_bytes", "write_folder"]

STORED_BYTES = 0.6
"""Bytes of a weight in 4 bits with its scales, with room."""


def storable_layers(weights: NamedWeights) -> dict[str, bool]:
    """The weights that a folder can hold in a format, and whether each is held transposed.

    transformers reads exactly `nn.Linear` (or GPT-2's `Conv1D`), whose weight is one tensor.
    """
    kept = unquantized_names(weights.empty)
    return {
        f"{name}.weight": isinstance(layer, Conv1D)
        for name, layer in linear_layers(weights.empty).items()
        if type(layer) in (nn.Linear, Conv1D)
        and name not in kept
        and f"{name}.weight" in weights.keys
    }


def storable_experts(weights: NamedWeights) -> dict[str, ExpertWeight]:
    """The fused experts that a folder can hold in a format."""
    return {
        name: weight
        for name, weight in expert_weights(weights.empty).items()
        if name in weights.experts or name in weights.keys
    }


def stored_bytes(weights: NamedWeights, in_format: bool) -> int:
    """About how many bytes `write_folder` will write."""
    layers = {*storable_layers(weights), *storable_experts(weights)} if in_format else set()
    total = 0.0
    for name, tensor in weights.empty.state_dict().items():
        if name in layers:
            total += STORED_BYTES * tensor.numel()
        elif name in weights.keys or name in weights.experts:
            total += weights.dtype(name).itemsize * tensor.numel()
        elif name in weights.joined:
            total += tensor.nbytes
    return int(total)


def write_folder(
    folder: Path,
    weights: NamedWeights,
    plain: Reader,
    *,
    untied: tuple[str, str] | None = None,
    stored: Callable[[str], FrozenWeight] | None = None,
    experts: Callable[[str], FrozenExperts] | None = None,
    format: type[FrozenWeight] | None = None,
    settings: StorageSettings | None = None,
    max_shard_bytes: int | None = None,
) -> int:
    """Write weights, config.json and the files beside them into an existing folder.

    Args:
        folder: an empty folder.
        weights: of the base, for names, types and the other files.
        plain: reads a weight that is not in a format, in its final type.
        untied: the weights of table and head if the two are no longer one.
        stored: gives a linear layer's weight in ``format``; ``None`` writes none in a format.
        experts: gives the experts of a layer in ``format``.
        format: the weight format.
        settings: its settings.
        max_shard_bytes: size of a file of weights.

    Returns:
        The bytes of the tensors.
    """
    layers = storable_layers(weights) if stored is not None else {}
    fused = storable_experts(weights) if experts is not None else {}
    disk_form = None if format is None else format.checkpoint
    if stored is not None and disk_form is None:
        raise ConfigError(f"weight format {format.format!r} has no form on disk" if format else "")
    with ShardWriter(folder, max_shard_bytes) as writer:
        for key, name in _in_order(weights):
            if name in fused and experts is not None and disk_form is not None:
                for part, tensor in write_experts(experts(name), name, disk_form).items():
                    writer.add(part, tensor)
            elif name is not None and name in weights.experts:
                for part, tensor in weights.experts[name].split(plain(name)).items():
                    writer.add(part, tensor)
            elif name is None:
                writer.add(key, weights.checkpoint.read(key))  # a part of another parameter
            elif name in layers and stored is not None and disk_form is not None:
                parts = disk_form.write(stored(name), key.removesuffix(".weight"))
                for part, tensor in parts.items():
                    writer.add(part, tensor)
            elif untied is None or name != untied[1]:
                writer.add(key, plain(name))
                if untied is not None and name == untied[0]:
                    writer.add(untied[1], plain(untied[1]))
            weights.checkpoint.forget()  # a mapped table that was written
    source = weights.checkpoint.folder
    copy_companions(source, folder)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for section in (config, config.get("text_config")):
        if isinstance(section, dict):
            section.pop("quantization_config", None)
            if untied is not None:
                section["tie_word_embeddings"] = False
            if weights.longer and "vocab_size" in section:
                section["vocab_size"] = max(weights.longer.values())
    if disk_form is not None and settings is not None and stored is not None:
        names = {name.removesuffix(".weight") for name in layers}
        kept = sorted(linear_layers(weights.empty).keys() - names)
        dtype = pick_dtype("auto", weights.empty.config, weights.checkpoint)
        config["quantization_config"] = disk_form.config(settings, dtype, kept)
    write_config(folder, config, source)
    return writer.total_bytes


def _in_order(weights: NamedWeights) -> Iterator[tuple[str, str | None]]:
    """Each tensor of the base: its key, and its name, or ``None`` if it is only a part."""
    names = {key: name for name, key in weights.keys.items()}
    names |= {joined.keys[0][0]: name for name, joined in weights.experts.items()}
    for key in sorted({*names, *weights.fused}):
        yield key, names.get(key)

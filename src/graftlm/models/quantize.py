"""Writes a model folder with its linear layers and experts in a storage format, shard by shard.

The tensors keep their names from the source, so a program that loads the source also loads the
result. The format's `CheckpointFormat` defines how a weight is written. Only layers that
transformers can read in such a format are stored: exactly `nn.Linear` (or GPT-2's `Conv1D`), with a
weight that is one tensor of the checkpoint. The output head is not. `quantization_config` names
every other linear layer, because transformers would otherwise expect it in the format.

Experts that transformers fuses into one parameter are stored too, and then only graftlm opens the
folder: see `stored_experts.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from graftlm.errors import ConfigError, GraftLMError, ModelError
from graftlm.files import atomic_folder, require_free_space
from graftlm.frozen.checkpoint_format import CheckpointFormat
from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.formats import DEFAULT_FORMAT, format_named
from graftlm.frozen.weight import FrozenWeight, WeightSettings
from graftlm.models.experts import expert_weights
from graftlm.models.joined_experts import joined_experts
from graftlm.models.load import empty_model, load_config, pick_dtype
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.saved_config import write_config
from graftlm.models.shard_writer import (
    ShardWriter,
    copy_companions,
    parameter_names,
    require_every_weight,
)
from graftlm.models.source import resolve
from graftlm.models.stored_experts import write_experts
from graftlm.models.streaming import linear_layers, unquantized_names
from graftlm.system import return_freed_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["quantize_folder"]

logger = logging.getLogger("graftlm")


def quantize_folder(
    name: str | Path,
    out: str | Path,
    block_size: int = 64,
    double_quant: bool = True,
    weight_format: str = DEFAULT_FORMAT,
) -> dict[str, Any]:
    """Write a model with its linear layers in a storage format; `load_model` opens the result.

    transformers with bitsandbytes also opens a result in the default format, unless the model is a
    mixture of experts.

    Peak memory is one tensor, whatever the size of the model. From this call on, the process
    returns freed memory to the system.

    Args:
        name: a folder, a Hub id, a `.gguf` file or a built-in name, in 16 or 32 bits.
        out: the folder to create.
        block_size: weights that share one scale.
        double_quant: whether the scales themselves are stored in 8 bits.
        weight_format: a registered format that has a form on disk.

    Returns:
        A summary: ``out``, ``quantized_layers``, ``quantized_experts`` (matrices),
        ``quantized_parameters``, ``kept_parameters``, ``bytes`` and ``bytes_before``.

    Raises:
        ConfigError: the format is not registered, or has no form on disk.
        ModelError: the model cannot be read, or no layer of it can be stored in the format.
        ResourceError: the disk is too small, or ``out`` exists or cannot be written to.
    """
    format, settings = format_named(weight_format), WeightSettings(block_size, double_quant)
    return_freed_memory()
    reader = format.checkpoint
    if reader is None:
        raise ConfigError(
            f"weight format {weight_format!r} has no form on disk: {format.__name__}.checkpoint is "
            "None. load_model(quantize=…) stores a model in it while loading."
        )
    source = resolve(name)
    config = load_config(source.path)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{name} is quantised already. Start from the model in 16 or 32 bits.")
    checkpoint, empty = Checkpoint(source.path), empty_model(config)
    layers, kept = _split(empty, checkpoint)
    experts = _Experts(empty, checkpoint)
    if not layers:
        raise ModelError(
            f"no layer of {name} can be stored as {reader.title} (nn.Linear or Conv1D expected, "
            f"found none in {config.model_type}). It can still be trained by QLoRA: "
            "graftlm quantises it while loading."
        )
    _warn_of_rows(checkpoint, layers, block_size)
    parameters = sum(_numel(checkpoint, key) for key in (*layers, *experts.keys))
    before = sum(stored.nbytes for stored in checkpoint.values())
    fixed = sum(
        checkpoint[key].nbytes
        for key in checkpoint
        if key not in layers and key not in experts.keys
    )
    require_free_space(out, fixed + int(parameters * 0.6) + 100_000_000, "Quantising")
    with atomic_folder(out) as folder:
        with ShardWriter(folder) as writer:
            for key in checkpoint:
                if key in experts.keys:
                    for part, tensor in experts.stored(key, format, settings, reader).items():
                        writer.add(part, tensor)
                    continue
                tensors = {key: checkpoint.read(key)}
                if key in layers:
                    weight = _stored(key, tensors[key], layers[key], format, settings)
                    tensors = reader.write(weight, key.removesuffix(".weight"))
                for part, tensor in tensors.items():
                    writer.add(part, tensor)
        copy_companions(source.path, folder)
        how = reader.config(settings, pick_dtype("auto", config, checkpoint), kept)
        plain = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
        write_config(folder, plain | {"quantization_config": how}, source.path)
    return {
        "out": str(out),
        "quantized_layers": len(layers),
        "quantized_experts": experts.count,
        "quantized_parameters": parameters,
        "kept_parameters": sum(_numel(checkpoint, key) for key in checkpoint) - parameters,
        "bytes": writer.total_bytes,
        "bytes_before": before,
    }


def _warn_of_rows(checkpoint: Checkpoint, layers: Mapping[str, bool], block_size: int) -> None:
    """Say which layers bitsandbytes 0.50 reads wrongly on a CPU with AVX-512.

    Blocks run on over the end of a row. Its kernel for that CPU begins a new one at each row.
    """
    columns = {key: checkpoint[key].shape[0 if turned else 1] for key, turned in layers.items()}
    if odd := [key for key, count in columns.items() if count % block_size]:
        logger.warning(
            "%d of %d layers have rows that are no multiple of the block size %d (%s: %d): "
            "bitsandbytes reads them wrongly on a CPU with AVX-512. graftlm, and bitsandbytes on a "
            "GPU, read them right",
            len(odd),
            len(layers),
            block_size,
            odd[0],
            columns[odd[0]],
        )


class _Experts:
    """The fused experts of a model, and the tensors of its checkpoint that hold them."""

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._weights = checkpoint, expert_weights(model)
        names, shared = parameter_names(model, checkpoint)
        self._joined = joined_experts(model, shared)
        whole = {k: n for k, n in names.items() if n in self._weights and k not in shared}
        self._first = whole | {one.keys[0][0]: name for name, one in self._joined.items()}
        parts = {key for one in self._joined.values() for keys in one.keys for key in keys}
        self.keys = parts | whole.keys()
        self.count = sum(self._weights[name].shape[0] for name in self._first.values())

    def stored(
        self,
        key: str,
        format: type[FrozenWeight],
        settings: WeightSettings,
        disk_form: type[CheckpointFormat],
    ) -> dict[str, Tensor]:
        """The tensors of a whole parameter for the first of its keys, none for the others."""
        name = self._first.get(key)
        if name is None:
            return {}
        joined, read = self._joined.get(name), self._checkpoint.read
        weight = read(key) if joined is None else joined.read(read)
        stack = FrozenExperts.of(weight, self._weights[name].transposed, format, settings)
        return write_experts(stack, name, disk_form)


def _split(model: PreTrainedModel, checkpoint: Checkpoint) -> tuple[dict[str, bool], list[str]]:
    """Which checkpoint tensors are stored in the format, and which linear layers are not.

    Returns:
        ``{tensor: whether it is stored transposed}`` and the names of the unchanged layers.
    """
    linears, spared = linear_layers(model), unquantized_names(model)
    names, shared = parameter_names(model, checkpoint)
    require_every_weight(model, checkpoint.folder, names.values())
    layers, done = {}, set()
    for key, name in names.items():
        path, _, leaf = name.rpartition(".")
        layer = linears.get(path)
        exact = type(layer) in (torch.nn.Linear, Conv1D)
        if key not in shared and leaf == "weight" and exact and path not in spared:
            layers[key] = isinstance(layer, Conv1D)
            done.add(path)
    return layers, sorted(linears.keys() - done)


def _stored(
    key: str,
    weight: Tensor,
    transposed: bool,
    format: type[FrozenWeight],
    settings: WeightSettings,
) -> FrozenWeight:
    try:
        return format.quantize(weight.t().contiguous() if transposed else weight, settings)
    except GraftLMError as error:
        raise type(error)(f"{key}: {error}") from error


def _numel(checkpoint: Checkpoint, key: str) -> int:
    return checkpoint[key].nbytes // checkpoint[key].dtype.itemsize

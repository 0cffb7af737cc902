"""One plain model on disk again: the adapter folded into its base, streamed tensor by tensor.

    onto "original":  W' = W + s · B A                  the checkpoint's own 16- or 32-bit weight
    onto a format:    W' = dequantize(quantize(W)) + s · B A    exactly what a QLoRA run trained

In the second form every linear layer that the run held in the weight format is written dequantised,
adapted or not; embeddings that it held in 8 bits are the checkpoint's own. The result keeps the
tensor names of the base's checkpoint, loads with plain transformers, and brings the chat template
the adapter was trained with.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from graftlm.adapters.adapted import base_modules, lora_modules, output_head
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.adapter_folder import base_of, run_settings, trained_on
from graftlm.adapters.adapter_tokenizer import adapter_tokenizer, brings_tokenizer
from graftlm.adapters.merging import Rounding, delta_of, merge_weight
from graftlm.adapters.peft_format import load_adapter
from graftlm.adapters.report import tied_head
from graftlm.config import ModelConfig
from graftlm.errors import ArtifactError, ConfigError, near_matches
from graftlm.files import atomic_folder, require_free_space, write_json
from graftlm.frozen.formats import format_named, formats
from graftlm.frozen.weight import FrozenWeight
from graftlm.models import resolve
from graftlm.models.load import empty_model, load_config, tokenizer_in
from graftlm.models.prequantized import mapped_tensors, stored_as
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.save import save_tokenizer
from graftlm.models.shard_writer import ShardWriter, copy_companions, parameter_names
from graftlm.models.streaming import (
    Abort,
    LazyTensor,
    Stored,
    copied_tensors,
    linear_layers,
    unquantized_names,
)

__all__ = ["merge_to_folder", "prepare_merge"]

SMALL_FILES_BYTES = 100_000_000


def merge_to_folder(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    onto: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> dict[str, Any]:
    """Fold the adapter at ``adapter`` into its base and write a plain transformers folder.

    Peak memory is one shard and one tensor. W' is computed in float32 and rounded once.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        out: the folder to create.
        base: the base model; by default the one the adapter names.
        onto: ``"original"`` or a weight format such as ``"nf4"``; by default the format of the
            base for an adapter in the folder of a QLoRA run (with the settings it used) or over a
            quantised base, else ``"original"``.
        dtype: type of the written weights; by default the base's. With float32 the merge is exact.
        max_shard_bytes: size of one file of weights; a gigabyte by default.

    Returns:
        ``base``, ``onto``, ``out``, ``modules`` merged, ``bytes`` written, the ``largest_rounding``
        of a merged weight, ``update_kept``: the share of the update that survives the rounding,
        ``weights_changed``: the share of the weights with an update whose stored value changed, and
        whether the output head was ``untied`` from the embeddings.

    Raises:
        ConfigError: ``onto`` is unknown, or asks for weights the base does not have.
        ArtifactError: the adapter does not fit the base.
        ResourceError: the disk is too small, or ``out`` exists or cannot be written.
    """
    name = base or base_of(adapter)
    source = resolve(name)
    merge = prepare_merge(adapter, source.path, name, onto, dtype)
    require_free_space(out, merge.predicted_bytes() + SMALL_FILES_BYTES, "Merging")
    with atomic_folder(out) as folder:
        writer = ShardWriter(folder, max_shard_bytes)
        for key, tensor in merge.tensors():
            writer.add(key, tensor)
        writer.close()
        copy_companions(source.path, folder)
        if brings_tokenizer(adapter):
            save_tokenizer(adapter_tokenizer(adapter, tokenizer_in(source.path)), folder)
        write_json(folder / "config.json", _edited_config(source.path, merge))
    return {
        "base": name,
        "onto": merge.onto,
        "out": str(out),
        "modules": len(merge.deltas),
        "bytes": writer.total_bytes,
        "largest_rounding": merge.rounding.largest,
        "update_kept": merge.rounding.update_kept,
        "weights_changed": merge.rounding.weights_changed,
        "untied": merge.untied_head is not None,
    }


@dataclasses.dataclass
class _Merge:
    """A merge in progress.

    Attributes:
        weights: the base's tensors by checkpoint key, not read yet.
        places: the parameter each key fills.
        deltas: the adapted modules by the name of their weight.
        format: the weight format that training held the base in; ``None``: dense, or the
            checkpoint is in its format already.
        quantized: names of the weights that training held in a format, and whether each is stored
            transposed (GPT-2). Empty when merging onto the original.
        untied_head: the table's and the head's weight when they must part.
    """

    onto: str
    weights: Mapping[str, LazyTensor]
    checkpoint: Checkpoint
    places: dict[str, str]
    deltas: dict[str, Adapter]
    format: type[FrozenWeight] | None
    quantized: dict[str, bool]
    settings: ModelConfig
    dtype: torch.dtype | None
    untied_head: tuple[str, str] | None
    rounding: Rounding = dataclasses.field(default_factory=Rounding)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the merged model, under the checkpoint's own key."""
        table, head = self.untied_head or (None, None)
        for key in self.weights:
            place = self.places[key]
            if place == head:
                continue  # written from the table's weight, which the base model used for both
            weight = self._base_weight(key, place)
            yield key, self._merged(weight, place)
            if head is not None and place == table:
                yield head, self._merged(weight, head)

    def predicted_bytes(self) -> int:
        """Bytes that `tensors` will yield."""
        total = 0
        for key in self.weights:
            if self.weights[key].stored:
                weight = _read(self.weights[key])  # it is mapped: nothing is copied
                assert isinstance(weight, Stored)
                numel, dtype = weight.weight.numel, weight.weight.dtype
            else:
                stored = self.checkpoint[key]
                numel, dtype = stored.nbytes // stored.dtype.itemsize, stored.dtype
            copies = 2 if self.untied_head and self.places[key] == self.untied_head[0] else 1
            total += numel * (self.dtype or dtype).itemsize * copies
        return total

    def _base_weight(self, key: str, place: str) -> Tensor:
        """The frozen weight as training saw it, in the checkpoint's layout."""
        weight = _read(self.weights[key])
        transposed = self.quantized.get(place, False)
        if isinstance(weight, Stored):
            dense = weight.weight.dequantize()
        elif self.format is not None and place in self.quantized:
            if self.settings.dtype != "auto":
                weight = weight.to(getattr(torch, self.settings.dtype))
            weight = weight.T.contiguous() if transposed else weight
            dense = self.format.quantize(weight, self.settings).dequantize()
        else:
            return weight
        return dense.T if transposed else dense

    def _merged(self, weight: Tensor, place: str) -> Tensor:
        dtype = self.dtype if weight.dtype.is_floating_point else None
        if place not in self.deltas:
            return weight.to(dtype) if dtype else weight
        adapter = self.deltas[place]
        merged, rounding = merge_weight(weight, delta_of([adapter], adapter.base, weight), dtype)
        self.rounding.add(rounding)
        return merged


def prepare_merge(
    adapter: str | Path,
    folder: Path,
    name: str,
    onto: str | None = None,
    dtype: torch.dtype | None = None,
) -> _Merge:
    """Plan the merge of ``adapter`` into the base ``name``, which lies in ``folder``.

    Names and shapes are read, weights are not. The arguments and errors are those of
    `merge_to_folder`.
    """
    config = load_config(folder)
    already = stored_as(config.__dict__.pop("quantization_config", None), name)
    chosen = _choose(onto, adapter, name, already[0] if already else None)
    format = None if already or chosen == "original" else format_named(chosen)
    checkpoint = Checkpoint(folder)
    model = empty_model(config)
    weights = mapped_tensors(checkpoint, already[1]) if already else copied_tensors(checkpoint)
    places, shared = parameter_names(model, weights)
    quantized = _quantized(model, weights, places, format)
    load_adapter(model, adapter)
    deltas = {f"{layer}.weight": module for layer, module in lora_modules(model).items()}
    untied = _parting(model, deltas)
    whole = {name for key, name in places.items() if key not in shared}
    lost = (deltas.keys() | quantized.keys()) - whole - set(untied or ())
    if lost:
        raise ArtifactError(
            f"{folder} does not store {min(lost)} as one tensor, so it cannot be merged on disk. "
            "Merge in memory: load_model, load_adapter, merge, save_model."
        )
    settings = run_settings(adapter)
    return _Merge(
        onto=chosen,
        weights=weights,
        checkpoint=checkpoint,
        places=places,
        deltas=deltas,
        format=format,
        quantized=quantized,
        settings=settings.model if settings else ModelConfig(),
        dtype=dtype,
        untied_head=untied,
    )


def _quantized(
    model: PreTrainedModel,
    weights: Mapping[str, LazyTensor],
    places: Mapping[str, str],
    format: type[FrozenWeight] | None,
) -> dict[str, bool]:
    """The weights that training held in a format, and whether the checkpoint has them turned."""
    layers = {f"{name}.weight": layer for name, layer in linear_layers(model).items()}
    if format is None:  # what the checkpoint itself holds in its format, if it has one
        held = {places[key] for key, lazy in weights.items() if lazy.stored}
    else:
        held = layers.keys() - {f"{name}.weight" for name in unquantized_names(model)}
    return {name: isinstance(layers.get(name), Conv1D) for name in held}


def _choose(onto: str | None, adapter: str | Path, name: str, already: str | None) -> str:
    """``"original"`` or the name of a weight format."""
    if onto is not None and onto != "original" and onto not in formats():
        known = ["original", *formats()]
        raise ConfigError(
            f"onto={onto!r}: expected {' or '.join(known)}{near_matches(onto, known)}"
        )
    if already is not None and onto not in (None, already):
        raise ConfigError(
            f"{name} holds weights in {already} only. To merge onto another form, name the model "
            "it was quantised from (base)."
        )
    return onto or already or trained_on(adapter) or "original"


def _parting(model: nn.Module, deltas: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of the table's and the head's weight if they are tied and one is adapted."""
    if not tied_head(model):
        return None
    head = output_head(model)
    modules = base_modules(model)
    weight = head.weight  # type: ignore[union-attr]
    ends = [f"{n}.weight" for n, m in modules.items() if getattr(m, "weight", None) is weight]
    head_name = next(f"{name}.weight" for name, module in modules.items() if module is head)
    table_name = next(name for name in ends if name != head_name)
    return (table_name, head_name) if {table_name, head_name} & deltas.keys() else None


def _read(lazy: LazyTensor) -> Tensor | Stored:
    try:
        return lazy[:]
    except Abort as abort:
        raise abort.error from abort.error.__cause__


def _edited_config(folder: Path, merge: _Merge) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        part.pop("quantization_config", None)
        if merge.untied_head is not None:
            part["tie_word_embeddings"] = False
        if merge.dtype is not None:
            part.pop("torch_dtype", None)
            part["dtype"] = str(merge.dtype).removeprefix("torch.")
    return config

"""The plan of a merge: the tensors of the result, computed one at a time.

`merge_to_folder` states the equations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from graftlm.adapters.adapter_folder import run_settings, trained_on
from graftlm.adapters.rounding import Rounding
from graftlm.config import ModelConfig
from graftlm.errors import ArtifactError, ConfigError, near_matches
from graftlm.exporting.merged_weights import Update, load_updates
from graftlm.frozen.formats import format_named, formats
from graftlm.frozen.weight import FrozenWeight
from graftlm.models.experts import ExpertWeight, expert_weights, rounded_experts
from graftlm.models.joined_experts import JoinedExperts, joined_experts
from graftlm.models.lazy import Abort, LazyTensor, Stored, copied_tensors
from graftlm.models.load import empty_model, load_config
from graftlm.models.prequantized import mapped_tensors, stored_as
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.shard_writer import parameter_names
from graftlm.models.streaming import linear_layers, unquantized_names
from graftlm.models.vocabulary import padded

__all__ = ["Merge", "prepare_merge"]


@dataclasses.dataclass
class Merge:
    """A merge in progress.

    Attributes:
        weights: the base's tensors by checkpoint key, not read yet.
        places: the parameter of each key.
        deltas: what the adapter changes, by the name of the weight.
        format: the weight format of the base during training; ``None`` if the base was dense, or
            if the checkpoint is already in its format.
        quantized: names of the weights that were in a format during training, and whether each is
            stored transposed (GPT-2). Empty for a merge onto the original.
        fused: the fused experts of the model.
        joined: those of them that the checkpoint stores apart.
        untied_head: the weights of table and head if they must be untied.
        left_out: the adapted layers without effect; see `left_out.py`.
        rows: the rows of table and head, if the adapter makes them longer; else 0.
        longer: the weights that get more rows.
    """

    onto: str
    weights: Mapping[str, LazyTensor]
    checkpoint: Checkpoint
    places: dict[str, str]
    deltas: Mapping[str, Update]
    format: type[FrozenWeight] | None
    quantized: dict[str, bool]
    fused: Mapping[str, ExpertWeight]
    joined: Mapping[str, JoinedExperts]
    settings: ModelConfig
    dtype: torch.dtype | None
    untied_head: tuple[str, str] | None
    left_out: tuple[str, ...] = ()
    rows: int = 0
    longer: frozenset[str] = frozenset()
    rounding: Rounding = dataclasses.field(default_factory=Rounding)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the merged model, under the checkpoint's own key."""
        table, head = self.untied_head or (None, None)
        changed = self.deltas if self.format is None else {**self.deltas, **self.fused}
        for key in self.weights:
            place = self.places[key]
            if place in self.joined and place in changed:
                if key == self.joined[place].keys[0][0]:  # the others are written with the first
                    joined = self.joined[place].read(lambda part: _dense(self.weights[part]))
                    merged = self._merged(self._as_trained(joined, place), place)
                    yield from self.joined[place].split(merged).items()
                continue
            if place == head:
                continue  # written from the table's weight, which the base model shares
            weight, dtype = self.base_weight(key), self._type_of(key)
            yield key, self._merged(weight, place, dtype)
            if head is not None and place == table:
                yield head, self._merged(weight, head, dtype)

    def predicted_bytes(self) -> int:
        """Bytes that `tensors` will yield."""
        total = 0
        for key in self.weights:
            if self.weights[key].stored:
                weight = _read(self.weights[key])  # a mapped view, not a copy
                assert isinstance(weight, Stored)
                numel, dtype = weight.weight.numel, weight.weight.dtype
            else:
                stored = self.checkpoint[key]
                numel, dtype = stored.nbytes // stored.dtype.itemsize, stored.dtype
            copies = 2 if self.untied_head and self.places[key] == self.untied_head[0] else 1
            total += numel * (self.dtype or dtype).itemsize * copies
        return total

    def base_weight(self, key: str) -> Tensor:
        """The frozen weight as in training, in the checkpoint's layout.

        One that is stored in a format is in the type that the run opened the folder in.
        """
        place = self.places[key]
        opened = None if self.settings.dtype == "auto" else getattr(torch, self.settings.dtype)
        weight = _read(self.weights[key])
        if place in self.fused:
            fused = weight.weight.dequantize(opened) if isinstance(weight, Stored) else weight
            return fused if isinstance(weight, Stored) else self._as_trained(fused, place)
        transposed = self.quantized.get(place, False)
        if isinstance(weight, Stored):
            dense = weight.weight.dequantize(opened)
        elif self.format is not None and place in self.quantized:
            if self.settings.dtype != "auto":
                weight = weight.to(getattr(torch, self.settings.dtype))
            weight = weight.T.contiguous() if transposed else weight
            dense = self.format.quantize(weight, self.settings).dequantize()
        else:
            return weight
        return dense.T if transposed else dense

    def _as_trained(self, weight: Tensor, place: str) -> Tensor:
        """Fused experts as they were in training."""
        if self.format is None:
            return weight
        if self.settings.dtype != "auto":
            weight = weight.to(getattr(torch, self.settings.dtype))
        return rounded_experts(weight, self.fused[place].transposed, self.format, self.settings)

    def _type_of(self, key: str) -> torch.dtype | None:
        """The type before it was stored of a weight in a format; ``None`` for the others."""
        weight = _read(self.weights[key]) if self.weights[key].stored else None
        return weight.weight.dtype if isinstance(weight, Stored) else None

    def _merged(self, weight: Tensor, place: str, own: torch.dtype | None = None) -> Tensor:
        dtype = (self.dtype or own) if weight.dtype.is_floating_point else None
        if place not in self.deltas:
            weight = padded(weight, self.rows if place in self.longer else 0)
            return weight.to(dtype) if dtype else weight
        merged, rounding = self.deltas[place].merged(weight, dtype)
        self.rounding.add(rounding)
        return merged


def prepare_merge(
    adapter: str | Path,
    folder: Path,
    name: str,
    onto: str | None = None,
    dtype: torch.dtype | None = None,
) -> Merge:
    """Plan the merge of ``adapter`` into the base ``name`` in ``folder``.

    This reads names and shapes, but no weights. The arguments and errors are those of
    `merge_to_folder`.
    """
    config = load_config(folder)
    already = stored_as(config.__dict__.pop("quantization_config", None), name)
    chosen = _choose(onto, adapter, name, already[0] if already else None)
    format = None if already or chosen == "original" else format_named(chosen)
    checkpoint = Checkpoint(folder)
    model = empty_model(config)
    fused = expert_weights(model)
    weights = (
        mapped_tensors(checkpoint, already[1], fused) if already else copied_tensors(checkpoint)
    )
    places, shared = parameter_names(model, weights)
    quantized = _quantized(model, weights, places, format)
    joined = joined_experts(model, shared)
    updates = load_updates(model, adapter, folder)
    deltas = updates.by_name
    untied = updates.parted
    whole = {name for key, name in places.items() if key not in shared} | joined.keys()
    needed = deltas.keys() | quantized.keys() | (fused.keys() if format is not None else set())
    followers = {name for name, update in deltas.items() if update.adapter.follows}
    lost = needed - whole - set(untied or ()) - followers
    if lost:
        raise ArtifactError(
            f"{folder} does not store {min(lost)} as one tensor, so it cannot be merged on disk. "
            "Merge in memory: load_model, load_adapter, merge, save_model."
        )
    settings = run_settings(adapter)
    return Merge(
        onto=chosen,
        weights=weights,
        checkpoint=checkpoint,
        places=places,
        deltas=deltas,
        format=format,
        quantized=quantized,
        fused=fused,
        joined=joined,
        settings=settings.model if settings else ModelConfig(),
        dtype=dtype,
        untied_head=untied,
        left_out=updates.left_out,
        rows=updates.rows,
        longer=updates.longer,
    )


def _quantized(
    model: PreTrainedModel,
    weights: Mapping[str, LazyTensor],
    places: Mapping[str, str],
    format: type[FrozenWeight] | None,
) -> dict[str, bool]:
    """The weights that were in a format during training, and whether each is stored transposed."""
    layers = {f"{name}.weight": layer for name, layer in linear_layers(model).items()}
    if format is None:  # the weights that the checkpoint itself stores in a format
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


def _dense(lazy: LazyTensor) -> Tensor:
    weight = _read(lazy)
    return weight.weight.dequantize() if isinstance(weight, Stored) else weight


def _read(lazy: LazyTensor) -> Tensor | Stored:
    try:
        return lazy[:]
    except Abort as abort:
        raise abort.error from abort.error.__cause__

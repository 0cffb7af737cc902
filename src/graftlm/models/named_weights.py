"""The weights of a model folder by their name in the model, dense, one at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from graftlm.errors import ModelError
from graftlm.frozen.formats import format_named
from graftlm.frozen.weight import FrozenWeight, StorageSettings
from graftlm.models.experts import expert_weights, rounded_experts
from graftlm.models.joined_experts import JoinedExperts, joined_experts
from graftlm.models.lazy import Abort, LazyTensor, Stored
from graftlm.models.load import empty_model, load_config
from graftlm.models.prequantized import mapped_tensors, stored_as
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.shard_writer import parameter_names
from graftlm.models.streamed import Reader, StreamedModel
from graftlm.models.streaming import linear_layers, unquantized_names
from graftlm.models.vocabulary import grow_vocabulary, grown_names, padded

__all__ = [
    "NamedWeights",
    "formatted_layers",
    "in_format",
    "longer",
    "named_weights",
    "read_lazy",
    "store",
]


@dataclasses.dataclass(frozen=True, eq=False)
class NamedWeights:
    """The weights of a folder; an instance is a `Reader`.

    Attributes:
        empty: the model on the meta device.
        checkpoint: the files.
        keys: the checkpoint's key of each parameter that is one tensor of it.
        experts: the fused parameters whose parts the checkpoint stores apart.
        fused: the tensors that transformers joins into other parameters, by key.
        joined: those parameters.
        stored: the weights that the folder holds in a weight format.
        tables: the weights of which few rows are read at a time: they are mapped.
        ties: the parameter that another one shares.
        longer: the parameters that get more rows than the files have, and how many; see `longer`.
        read_by: see `StreamedModel`.
    """

    empty: PreTrainedModel
    checkpoint: Checkpoint
    keys: Mapping[str, str]
    experts: Mapping[str, JoinedExperts]
    fused: Mapping[str, LazyTensor]
    joined: frozenset[str]
    stored: Mapping[str, LazyTensor]
    tables: frozenset[str]
    ties: Mapping[str, str]
    longer: Mapping[str, int] = dataclasses.field(default_factory=dict)
    read_by: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def __call__(self, name: str) -> Tensor:
        """The weight as the module holds it; float32 if it comes from a weight format."""
        weight = self._in_files(name)
        return padded(weight, self.longer[name]) if name in self.longer else weight

    def _in_files(self, name: str) -> Tensor:
        if name in self.experts:
            return self.experts[name].read(self.checkpoint.read)
        if name not in self.keys:
            name = self.ties.get(name, name)
        if name in self.stored:
            weight = read_lazy(self.stored[name])
            assert isinstance(weight, Stored)
            dense = weight.weight.dequantize(torch.float32)
            if dense.ndim == 3:
                return dense  # fused experts, as the model has them
            layer = self.empty.get_submodule(name.removesuffix(".weight"))
            return dense.T if isinstance(layer, Conv1D) else dense
        if name not in self.keys:
            raise ModelError(f"{self.checkpoint.folder} does not store {name} as one tensor")
        key = self.keys[name]
        return self.checkpoint.map(key) if name in self.tables else self.checkpoint.read(key)

    def dtype(self, name: str) -> torch.dtype:
        """The type of a weight in the checkpoint; of a stored one, the type it is decoded to."""
        if name in self.experts:
            return self.checkpoint[self.experts[name].keys[0][0]].dtype
        place = name if name in self.keys else self.ties.get(name, name)
        if place in self.stored:
            weight = read_lazy(self.stored[place])
            assert isinstance(weight, Stored)
            return weight.weight.dtype
        return self.checkpoint[self.keys[place]].dtype

    def transposed(self, layer: str) -> bool:
        """Whether the module ``layer`` holds its weight as [in, out] (GPT-2)."""
        return isinstance(self.empty.get_submodule(layer), Conv1D)

    def streamed(
        self, read: Reader | None = None, release: Callable[[], None] = lambda: None
    ) -> StreamedModel:
        """A model that runs from the disk, by default over exactly these weights.

        Args:
            read: reads a weight.
            release: gives back the memory of other mapped files after each use.
        """

        def forget() -> None:
            self.checkpoint.forget()
            release()

        read_by = self.read_by
        return StreamedModel(self.empty, read or self, self.fused, self.joined, forget, read_by)


def named_weights(folder: Path, name: str | None = None) -> NamedWeights:
    """Open a model folder; reads names and shapes only.

    Args:
        folder: the model folder.
        name: what to call it in messages.
    """
    config = load_config(folder)
    already = stored_as(config.__dict__.pop("quantization_config", None), name or str(folder))
    checkpoint, empty = Checkpoint(folder), empty_model(config)
    lazy: dict[str, LazyTensor] = (
        mapped_tensors(checkpoint, already[1], expert_weights(empty))
        if already
        else {key: LazyTensor(functools.partial(checkpoint.read, key)) for key in checkpoint}
    )
    places, shared = parameter_names(empty, lazy)
    experts = joined_experts(empty, shared)
    others = [key for key in shared if places[key] not in experts]
    ties = dict(getattr(empty, "all_tied_weights_keys", None) or {})
    head = empty.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables = {
        f"{path}.weight"
        for path, module in empty.named_modules()
        if isinstance(module, nn.Embedding) or module is head
    }
    return NamedWeights(
        empty=empty,
        checkpoint=checkpoint,
        keys={place: key for key, place in places.items() if key not in shared},
        experts=experts,
        fused={key: lazy[key] for key in others},
        joined=frozenset(places[key] for key in others),
        stored={places[key]: one for key, one in lazy.items() if one.stored},
        tables=frozenset(tables),
        ties=ties | {table: head for head, table in ties.items()},
    )


def longer(weights: NamedWeights, rows: int) -> NamedWeights:
    """The same weights with an embedding table and an output head of ``rows`` rows.

    ``weights`` must not be used afterwards: the two share their model without values.
    """
    grow_vocabulary(weights.empty, rows)
    return dataclasses.replace(weights, longer=dict.fromkeys(grown_names(weights.empty), rows))


def in_format(
    weights: NamedWeights, format: str, settings: StorageSettings, dtype: torch.dtype | None
) -> Reader:
    """A reader of the weights as a QLoRA run holds them.

    Args:
        weights: of a folder in 16 or 32 bits.
        format: the weight format of the linear layers.
        settings: its settings.
        dtype: the type that a weight has before it is stored; ``None`` for its own.
    """
    layers, fused = formatted_layers(weights.empty), expert_weights(weights.empty)

    def read(name: str) -> Tensor:
        weight = weights(name)
        if name in fused:
            weight = weight if dtype is None else weight.to(dtype)
            return rounded_experts(weight, fused[name].transposed, format_named(format), settings)
        if name not in layers:
            return weight
        stored = store(weight, layers[name], format_named(format), settings, dtype)
        dense = stored.dequantize(torch.float32)
        return dense.T if layers[name] else dense

    return read


def formatted_layers(empty: PreTrainedModel) -> dict[str, bool]:
    """The weights that a run holds in its format, and whether each is stored transposed."""
    kept = unquantized_names(empty)
    return {
        f"{name}.weight": isinstance(layer, Conv1D)
        for name, layer in linear_layers(empty).items()
        if name not in kept
    }


def store(
    weight: Tensor,
    transposed: bool,
    format: type[FrozenWeight],
    settings: StorageSettings,
    dtype: torch.dtype | None = None,
) -> FrozenWeight:
    """A weight, as its module holds it, in ``format``."""
    weight = weight if dtype is None else weight.to(dtype)
    return format.quantize(weight.T.contiguous() if transposed else weight, settings)


def read_lazy(lazy: LazyTensor) -> Tensor | Stored:
    """Read, and raise what the reader raises."""
    try:
        return lazy[:]
    except Abort as abort:
        raise abort.error from abort.error.__cause__

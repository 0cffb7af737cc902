"""The weights of a merged model, by name, computed when they are asked for.

    exact     W + Δ                      float32
    in16      R(W + Δ)                   rounded once to the type of the base's checkpoint
    stored    Q(W + Δ)                   in a weight format

W is the original weight or the one the run trained on, Δ the adapter's update. `Adapter.merged`
adds; nothing else here changes a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.merging import exact_part, merge_part
from graftlm.adapters.peft_format import map_adapter
from graftlm.adapters.rounding import Rounding
from graftlm.adapters.trained_parts import ends_of
from graftlm.adapters.weights_read_directly import in_effect, say_left_out
from graftlm.exporting.left_out import left_out_on_disk
from graftlm.frozen.experts import ExpertStack, FrozenExperts
from graftlm.frozen.weight import FrozenWeight, StorageSettings
from graftlm.models.calibrate import CalibratedWeights
from graftlm.models.experts import ExpertWeight
from graftlm.models.load import empty_model, load_config
from graftlm.models.named_weights import NamedWeights
from graftlm.models.streamed import Reader
from graftlm.models.vocabulary import grown_names, padded, table_rows

__all__ = [
    "In16Bits",
    "MergedWeights",
    "StoredWeights",
    "Update",
    "Updates",
    "load_updates",
    "updates_of",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """What an adapter changes in one tensor of the base.

    Attributes:
        adapter: the adapter.
        part: the tensor's name in the module.
        rows: the rows that the tensor has after the merge; 0: as many as before.
        release: gives back the memory of the adapter's file after each use.
    """

    adapter: Adapter
    part: str
    rows: int = 0
    release: Callable[[], None] = lambda: None

    def place(self, name: str) -> str:
        """The module of the adapter, if ``name`` is that of the tensor."""
        if isinstance(self.adapter.base, ExpertStack):
            return name
        return name.removesuffix(f".{self.part}")

    def exact(self, tensor: Tensor) -> Tensor:
        """The tensor after the merge in float32, in the base's own layout."""
        tensor = padded(tensor, self.rows)
        exact = exact_part([self.adapter], self.adapter.base, self.part, tensor)
        self.release()
        return exact

    def merged(self, tensor: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Rounding]:
        """The tensor after the merge, in the base's own layout, and the effect of the rounding."""
        tensor = padded(tensor, self.rows)
        merged = merge_part([self.adapter], self.adapter.base, self.part, tensor, dtype)
        self.release()
        return merged


@dataclasses.dataclass(frozen=True, eq=False)
class Updates:
    """All that an adapter changes in a base.

    Attributes:
        by_name: the updates by the name of the tensor that each changes.
        rows: the rows of table and head after the merge, if there are more; else 0.
        longer: the names of the tensors that get more rows.
        parted: the weights of table and head if they were one and are no longer.
        left_out: the adapted layers without effect, which are not in ``by_name``.
    """

    by_name: Mapping[str, Update]
    rows: int
    longer: frozenset[str]
    parted: tuple[str, str] | None
    left_out: tuple[str, ...] = ()


def updates_of(adapter: str | Path, folder: Path) -> Updates:
    """The changes of the adapter at ``adapter``.

    Raises:
        ArtifactError: the adapter does not fit the model in ``folder``.
        ConfigError: it has a bias that the model has no place for.
    """
    config = load_config(folder)
    config.__dict__.pop("quantization_config", None)
    return load_updates(empty_model(config), adapter, folder)


def load_updates(model: Any, adapter: str | Path, folder: Path) -> Updates:
    """`updates_of` for a model without values, which gets the adapter; says what is left out."""
    before, names = table_rows(model), frozenset(grown_names(model))
    release = map_adapter(model, adapter)
    left_out, failure = left_out_on_disk(model, Path(adapter), folder)
    say_left_out(left_out, failure)
    longer = names if table_rows(model) > before else frozenset()
    rows = table_rows(model) if longer else 0
    by_name = {
        (name if isinstance(module.base, ExpertStack) else f"{name}.{part}"): Update(
            module, part, rows if f"{name}.{part}" in longer else 0, release
        )
        for name, module in lora_modules(model).items()
        for part in module.parts()
        if in_effect(name, part, left_out)
    }
    return Updates(by_name, rows, longer, _parted(model, by_name), tuple(left_out))


def _parted(model: Any, by_name: Mapping[str, Update]) -> tuple[str, str] | None:
    ends = ends_of(model)
    table, head = f"{ends.table}.weight", f"{ends.head}.weight"
    if not ends.tied or not {table, head} & by_name.keys():
        return None
    update = by_name.get(head)
    return None if update is not None and update.adapter.follows else (table, head)


@dataclasses.dataclass(frozen=True, eq=False)
class MergedWeights:
    """W + Δ in float32; a weight without an update is as ``base`` reads it."""

    base: Reader
    updates: Mapping[str, Update]

    def __call__(self, name: str) -> Tensor:
        """The weight, as its module holds it."""
        weight = self.base(name)
        if name not in self.updates:
            return weight
        return self.updates[name].exact(weight)


@dataclasses.dataclass(frozen=True, eq=False)
class In16Bits:
    """The weights rounded to the types in the base's checkpoint."""

    exact: Reader
    weights: NamedWeights

    def __call__(self, name: str) -> Tensor:
        """The weight, as its module holds it."""
        return self.exact(name).to(self.weights.dtype(name))


@dataclasses.dataclass(frozen=True, eq=False)
class StoredWeights:
    """The linear layers and the experts in a weight format, everything else in 16 bits."""

    exact: Reader
    weights: NamedWeights
    format: type[FrozenWeight]
    settings: StorageSettings
    dtype: torch.dtype | None
    layers: Mapping[str, bool]
    experts: Mapping[str, ExpertWeight]
    made: CalibratedWeights | None = None

    def stored(self, name: str) -> FrozenWeight:
        """A linear layer's weight in the format; by plain rounding unless it was calibrated."""
        if self.made is not None:
            return self.made[name]
        weight = self.exact(name)
        weight = weight.T.contiguous() if self.layers[name] else weight
        return self.format.quantize(weight, self.settings).of_type(self.type_of(name))

    def stored_experts(self, name: str) -> FrozenExperts:
        """The experts of a layer in the format, by plain rounding."""
        turned, weight = self.experts[name].transposed, self.exact(name)
        return FrozenExperts.of(weight, turned, self.format, self.settings, self.type_of(name))

    def __call__(self, name: str) -> Tensor:
        """The weight as its module computes with it; float32 if it is stored."""
        if name in self.experts:
            return self.stored_experts(name).dequantize(torch.float32)
        if name not in self.layers:
            return self.exact(name).to(self.weights.dtype(name))
        dense = self.stored(name).dequantize(torch.float32)
        return dense.T if self.layers[name] else dense

    def type_of(self, name: str) -> torch.dtype:
        """The type that a stored weight is decoded to."""
        return self.dtype or self.weights.dtype(name)

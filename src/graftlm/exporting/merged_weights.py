"""The weights of a merged model, by name, computed when they are asked for.

    exact     W + Δ                      float32
    in16      R(W + Δ)                   rounded once to the type of the base's checkpoint
    stored    Q(W + Δ)                   in a weight format

W is the original weight or the one the run trained on, Δ the adapter's update. `Adapter.merged`
adds; nothing else here changes a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.merging import delta_of
from graftlm.adapters.peft_format import load_adapter
from graftlm.frozen.experts import ExpertStack, FrozenExperts
from graftlm.frozen.weight import FrozenWeight, StorageSettings
from graftlm.models.calibrate import CalibratedWeights
from graftlm.models.experts import ExpertWeight
from graftlm.models.load import empty_model, load_config
from graftlm.models.named_weights import NamedWeights
from graftlm.models.streamed import Reader

__all__ = ["In16Bits", "MergedWeights", "StoredWeights", "updates_of", "weight_name"]


def updates_of(adapter: Path, folder: Path) -> dict[str, Adapter]:
    """The adapters at ``adapter``, by the name of the weight that each changes.

    Raises:
        ArtifactError: the adapter does not fit the model in ``folder``.
    """
    config = load_config(folder)
    config.__dict__.pop("quantization_config", None)
    model = empty_model(config)
    load_adapter(model, adapter)
    return {weight_name(name, module): module for name, module in lora_modules(model).items()}


def weight_name(name: str, adapter: Adapter) -> str:
    """The name of the weight that the adapter at ``name`` changes; fused experts are one."""
    return name if isinstance(adapter.base, ExpertStack) else f"{name}.weight"


@dataclasses.dataclass(frozen=True, eq=False)
class MergedWeights:
    """W + Δ in float32; a weight without an update is as ``base`` reads it."""

    base: Reader
    updates: Mapping[str, Adapter]

    def __call__(self, name: str) -> Tensor:
        """The weight, as its module holds it."""
        weight = self.base(name)
        if name not in self.updates:
            return weight
        adapter = self.updates[name]
        return weight.float() + delta_of([adapter], adapter.base, weight)


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

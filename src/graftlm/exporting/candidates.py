"""The ways to merge an adapter, each as weights that can be run and written.

    16bit-original        R(W + Δ)            onto the base's own 16-bit weights
    16bit-dequantized     R(Q⁻¹Q(W) + Δ)      onto the 4-bit base that a QLoRA run trained on
    F-requantized         Q(Q⁻¹Q(W) + Δ)      that, rounded to the format F again
    F-original            Q(W + Δ)            rounded once; after `lora.merge_aware` it is the model
                                              that was trained, to the bit
    F-feedback            fitted to calibration rows, towards the live model: from F-original to
                          Q⁻¹Q(W) + Δ, or, if it was trained on 16 bits, W + Δ by error feedback
    F-feedback-original   W + Δ by error feedback, if it was trained on F

R rounds to the type of the checkpoint, Q to a weight format. Δ is the adapter's update. What a
candidate is worth is measured (`measure.py`), not assumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.adapter_folder import run_settings, trained_on
from graftlm.adapters.peft_format import load_adapter
from graftlm.config import ModelConfig
from graftlm.errors import ArtifactError, ConfigError, near_matches
from graftlm.exporting.merged_weights import (
    In16Bits,
    MergedWeights,
    StoredWeights,
    Update,
    updates_of,
)
from graftlm.frozen.formats import DEFAULT_FORMAT, format_named, formats
from graftlm.models.experts import expert_weights
from graftlm.models.named_weights import (
    NamedWeights,
    formatted_layers,
    in_format,
    longer,
    named_weights,
)
from graftlm.models.stored_folder import storable_experts, storable_layers
from graftlm.models.streamed import Reader, StreamedModel
from graftlm.system import trim_heap

__all__ = ["SIXTEEN_BIT", "MergeSource", "Original", "open_source"]

SIXTEEN_BIT = "16bit"
ORIGINAL = "original"


@dataclasses.dataclass(frozen=True, eq=False)
class Original:
    """The base's own weights, in the type that a run stores them from."""

    weights: NamedWeights
    dtype: torch.dtype | None
    layers: Mapping[str, bool]

    def __call__(self, name: str) -> Tensor:
        """The weight, as its module holds it."""
        weight = self.weights(name)
        return weight.to(self.dtype) if self.dtype and name in self.layers else weight


@dataclasses.dataclass(frozen=True, eq=False)
class MergeSource:
    """An adapter and its base, opened for a merge.

    Attributes:
        adapter: the adapter's folder, or a run folder.
        weights: the base's folder.
        updates: what the adapter changes, by the name of the weight.
        untied: the weights of table and head, if they were one and are no longer.
        trained: the weight format of the base in training; ``original`` for none.
        through_merge: whether the run trained through the merge.
        settings: how the run held its base.
        to: the weight format of merges that are not in 16 bits.
        left_out: the adapted layers without effect, which are not in ``updates``.
    """

    adapter: Path
    weights: NamedWeights
    updates: Mapping[str, Update]
    trained: str
    through_merge: bool
    settings: ModelConfig
    to: str
    untied: tuple[str, str] | None = None
    left_out: tuple[str, ...] = ()

    def base(self) -> Reader:
        """The base as the adapter was trained on it."""
        if self.trained == ORIGINAL or self.weights.stored:
            return self.weights
        return in_format(self.weights, self.trained, self.settings, self._dtype)

    def live(self) -> StreamedModel:
        """The live adapter on that base."""
        if self.through_merge:
            return self.weights.streamed(self.stored(f"{self.to}-original"))
        by_place = {update.place(name): update for name, update in self.updates.items()}
        release = next((update.release for update in by_place.values()), lambda: None)
        model = self.weights.streamed(self.base(), release)
        load_adapter(model.model, self.adapter)
        for place, adapter in lora_modules(model.model).items():
            if place in by_place:  # one copy for both, which is the file's
                same = by_place[place].adapter.adapter_parameters()
                for attribute, parameter in adapter.adapter_parameters().items():
                    parameter.data = same[attribute].data
        trim_heap()
        return model

    def kinds(self) -> list[str]:
        """The candidates that need no calibration."""
        original, held = not self.weights.stored, self.trained != ORIGINAL
        return [
            kind
            for kind, possible in (
                (f"{SIXTEEN_BIT}-original", original),
                (f"{SIXTEEN_BIT}-dequantized", held),
                (f"{self.to}-requantized", held and not self.through_merge),
                (f"{self.to}-original", original),
            )
            if possible
        ]

    def reader(self, kind: str) -> Reader:
        """The weights of a candidate."""
        if kind == f"{SIXTEEN_BIT}-original":
            return In16Bits(MergedWeights(self.original(), self.updates), self.weights)
        if kind != f"{SIXTEEN_BIT}-dequantized":
            return self.stored(kind)
        if self.through_merge:
            return In16Bits(self.stored(f"{self.to}-original"), self.weights)
        return In16Bits(MergedWeights(self.base(), self.updates), self.weights)

    def stored(self, kind: str) -> StoredWeights:
        """The weights of a candidate in a weight format."""
        base = self.base() if kind == f"{self.to}-requantized" else self.original()
        return StoredWeights(
            MergedWeights(base, self.updates),
            self.weights,
            format_named(self.to),
            self.settings,
            self._dtype,
            storable_layers(self.weights),
            storable_experts(self.weights),
        )

    def original(self) -> Original:
        """The base's own weights."""
        return Original(self.weights, self._dtype, formatted_layers(self.weights.empty))

    @property
    def _dtype(self) -> torch.dtype | None:
        name = self.settings.dtype
        return None if name == "auto" else getattr(torch, name)


def open_source(
    adapter: Path, folder: Path, name: str, onto: str | None = None, to: str | None = None
) -> MergeSource:
    """Open an adapter and its base; reads no weights of the base.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        folder: of the base.
        name: what to call the base in messages.
        onto: the form of the base that the adapter was trained on, if that is not recorded.
        to: the weight format of merges that are not in 16 bits.

    Raises:
        ArtifactError: the adapter does not fit the base.
        ConfigError: a format is unknown, or the base does not have these weights.
    """
    known = [ORIGINAL, *formats()]
    if onto is not None and onto not in known:
        raise ConfigError(
            f"onto={onto!r}: expected {' or '.join(known)}{near_matches(onto, known)}"
        )
    weights = named_weights(folder, name)
    stored = format_in(weights)
    if stored is not None and onto not in (None, stored):
        raise ConfigError(
            f"{name} holds weights in {stored} only. To merge onto another form, name the model "
            "it was quantised from (base)."
        )
    run = run_settings(adapter)
    trained = onto or stored or trained_on(adapter) or ORIGINAL
    unread = sorted(weights.joined & expert_weights(weights.empty).keys())
    if unread and stored is None and trained != ORIGINAL:
        raise ArtifactError(
            f"{name} stores {unread[0]} in a way that cannot be read tensor by tensor, so its base "
            f"in {trained} cannot be made on disk. Merge in memory: load_model, load_adapter, "
            "merge, save_model."
        )
    target = to or (trained if trained != ORIGINAL else DEFAULT_FORMAT)
    if format_named(target).checkpoint is None:
        if to is not None:
            raise ConfigError(
                f"weight format {to!r} has no form on disk, so it cannot be merged to"
            )
        target = DEFAULT_FORMAT
    updates = updates_of(adapter, folder)
    return MergeSource(
        adapter=adapter,
        weights=longer(weights, updates.rows) if updates.rows else weights,
        updates=updates.by_name,
        untied=updates.parted,
        trained=trained,
        through_merge=bool(run and run.lora.merge_aware == target and onto is None),
        settings=run.model if run else ModelConfig(),
        to=target,
        left_out=updates.left_out,
    )


def format_in(weights: NamedWeights) -> str | None:
    """The weight format that a folder holds its layers in."""
    for lazy in weights.stored.values():
        return lazy[:].weight.format  # type: ignore[union-attr]
    return None

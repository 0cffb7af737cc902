"""Switches the adapters of a model to training through the merge (`through_merge.py`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.through_merge import ThroughMerge, require_mergeable
from graftlm.config import RunConfig
from graftlm.errors import ConfigError
from graftlm.frozen.modules import linear_format
from graftlm.models.base_files import folder_read
from graftlm.models.capabilities import forget
from graftlm.models.named_weights import named_weights
from graftlm.models.source import resolve

if TYPE_CHECKING:
    from graftlm.adapters.lora_linear import LoRALinear

__all__ = ["apply_merge_aware", "merge_format", "original_weights", "train_through_merge"]

Originals = Callable[[str], Tensor]
"""The original weight (out, in) of a linear layer, by the layer's name."""


def train_through_merge(model: nn.Module, originals: Originals, format: str | None = None) -> None:
    """Let every adapter of ``model`` train through the merge into its base's format, in place.

    Args:
        model: a model with one adapter on linear layers in a weight format.
        originals: see `original_weights`.
        format: the format to expect; by default that of the model.

    Raises:
        ConfigError: an adapter cannot; nothing is changed.
    """
    expected = format or linear_format(model) or "a weight format"
    adapters = lora_modules(model)
    for name, adapter in adapters.items():
        require_mergeable(adapter, name, expected)
    for name, adapter in adapters.items():
        cast("LoRALinear", adapter).through = ThroughMerge(functools.partial(originals, name))
    forget(model)


def apply_merge_aware(model: nn.Module, config: RunConfig) -> None:
    """Let the adapters train through the merge if the setting `lora.merge_aware` says so."""
    if config.lora.merge_aware:
        originals = original_weights(folder_read(model) or config.model.name, config.model.dtype)
        train_through_merge(model, originals, config.lora.merge_aware)


def merge_format(model: nn.Module) -> str:
    """The format into which the adapters train through the merge; empty if they do not."""
    on = any(getattr(adapter, "through", None) for adapter in lora_modules(model).values())
    return (linear_format(model) or "") if on else ""


def original_weights(name: str | Path, dtype: str = "auto") -> Originals:
    """The weights of the model ``name`` in 16 or 32 bits, read from the disk one at a time.

    Args:
        name: a folder, a Hub id, a `.gguf` file or a built-in name.
        dtype: the type that a weight has before it is stored in its format, as `model.dtype`.

    Raises:
        ConfigError: the model's weights are in a weight format already.
    """
    kind: torch.dtype | None = None if dtype == "auto" else getattr(torch, dtype)
    weights = named_weights(resolve(name).path, str(name))
    if weights.stored:
        raise ConfigError(
            f"lora.merge_aware: {name} holds its weights in 4 bits only. Name the model that it "
            "was quantised from: the merge starts from the original weights."
        )

    def read(layer: str) -> Tensor:
        weight = weights(f"{layer}.weight")
        weight = weight if kind is None else weight.to(kind)
        return weight.T.contiguous() if weights.transposed(layer) else weight

    return read

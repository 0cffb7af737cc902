"""Gradient checkpointing: the activations of a layer are computed again in the backward pass."""

from __future__ import annotations

import inspect
from typing import Any

from graftlm.errors import ConfigError

__all__ = ["recompute_activations"]


def recompute_activations(model: Any, *, offload: bool = False) -> None:
    """Switch on gradient checkpointing for a transformers model, in place.

    Only the input of each layer is kept. It is the non-reentrant kind, which works even if the
    first layer's input needs no gradient.

    Args:
        model: a transformers model.
        offload: keep these inputs in page-locked host memory until the backward pass.

    Raises:
        ConfigError: the installed transformers cannot offload.
    """
    # transformers 5.23 renamed the switch, and learned to offload.
    enable = getattr(model, "activation_checkpointing_enable", None)
    if offload:
        if enable is None or "offload" not in inspect.signature(enable).parameters:
            raise ConfigError("train.offload_checkpoints=true needs transformers 5.23 or newer")
        enable({"use_reentrant": False}, offload=True)
        return
    enable = enable or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})

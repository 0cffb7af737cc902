"""Gradient checkpointing: keep each layer's input, compute its activations again when needed."""

from __future__ import annotations

from typing import Any

__all__ = ["recompute_activations"]


def recompute_activations(model: Any) -> None:
    """Switch gradient checkpointing on for a transformers model, in place.

    Non-reentrant: works although the first layer's input needs no gradient.
    """
    # transformers 5.23 renamed the switch.
    enable = getattr(model, "activation_checkpointing_enable", None)
    enable = enable or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})

"""How a model's own code recomputes its activations; seen in transformers 5.23."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["chooses_its_own_kind"]


def chooses_its_own_kind(model: Any) -> bool:
    """Whether a model of the older form, from the Hub, calls the checkpoint function itself.

    transformers passes it no arguments then, so it may be the re-entrant kind, which needs an input
    with a gradient.
    """
    return "value" in inspect.signature(model._set_gradient_checkpointing).parameters

"""Layers that PEFT 0.21 refuses to adapt; seen in transformers 5.23.

The kernels of these architectures on a GPU read the weight of `out_proj` themselves and never call
the layer, so that an adapter there has no effect. PEFT refuses the name wherever it stands in such
a model, also when an adapter is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["REFUSED", "refused_by_peft"]

MODELS = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
REFUSED = frozenset({"out_proj", "conv1d"})
"""The ends of names, in PEFT's own check (a test compares)."""


def refused_by_peft(config: Any, names: Iterable[str]) -> list[str]:
    """Of the modules ``names``, those that PEFT refuses to adapt.

    Args:
        config: the model's.
        names: their names in the model.
    """
    if getattr(config, "model_type", None) not in MODELS:
        return []
    return [name for name in names if name.rpartition(".")[2] in REFUSED]

"""Compilation of a model's layers by `torch.compile`, for the setting `train.compile`.

A step of a small model on a GPU spends its time on starting operations, thousands of them.
Compiled, the operations between two products become one. Each layer is compiled by itself: layers
of one kind share the code, modules and their names stay as they are, and the length of a row is a
variable of the code. Our operators stay whole, and so do embeddings, loss and optimiser.
"""

from __future__ import annotations

import importlib.util

from torch import nn

from graftlm.errors import ConfigError
from graftlm.models.host_layers import host_layers
from graftlm.system.placement import placement_of

__all__ = ["compile_layers"]


def compile_layers(model: nn.Module, backend: str = "inductor") -> int:
    """Compile each layer of a transformers model at its next call. Returns the number of layers.

    Args:
        model: with its adapters, on its device.
        backend: what `torch.compile` gives the traced operations to.

    Raises:
        ConfigError: the model has no such layers, or the device's compiler is missing.
    """
    layers = host_layers(model)
    if not layers:
        raise ConfigError(
            f"train.compile: {type(model).__name__} has no layers that can be compiled one by one. "
            "Set it to false."
        )
    on_card = not placement_of(model).runs_on_cpu
    if on_card and backend == "inductor" and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "train.compile=true needs Triton on this device: pip install triton, or set it to false"
        )
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)
    return len(layers)

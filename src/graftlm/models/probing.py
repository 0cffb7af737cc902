"""The mode of a model during a capability test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["being_probed"]


@contextlib.contextmanager
def being_probed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or compiled code; afterwards each mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode

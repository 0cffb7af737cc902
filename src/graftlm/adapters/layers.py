"""Common properties of the linear layers of several libraries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from graftlm._compat.fake import is_fake
from graftlm._compat.tracing import modes_off
from graftlm.frozen.experts import ExpertStack

__all__ = ["linear_shape", "multiplies_otherwise", "stores_transposed"]

ROWS, COLUMNS = 6, 4
"""The size of the trial layer in `multiplies_otherwise`."""
FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What such a forward pass raises that takes or gives something else."""


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """``(out_features, in_features)`` of a module that computes ``x Wᵀ + b``, else ``None``."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if not isinstance(rows, int) or not isinstance(columns, int) or multiplies_otherwise(module):
        return None
    return rows, columns


def multiplies_otherwise(module: nn.Module) -> bool:
    """Whether this subclass of `nn.Linear` computes something else than ``x Wᵀ + b``.

    A router may return a tuple (Llama 4), a grouped layer multiplies each group by a part of W
    (DeepSeek-V4). The forward pass of the class is tried on a small layer with the module's own
    settings. A weight of a type of its own (bitsandbytes) multiplies in its own way and is trusted.
    """
    cls = type(module)
    if not isinstance(module, nn.Linear) or cls.forward is nn.Linear.forward:
        return False
    if type(module.weight) is not nn.Parameter and not is_fake(module.weight):
        return False
    settings = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, int | float | str)
    }
    with modes_off(), torch.device("cpu"), torch.no_grad():
        weight = torch.linspace(-1, 1, ROWS * COLUMNS).view(ROWS, COLUMNS)
        bias = None if module.bias is None else torch.linspace(1, 2, ROWS)
        x = torch.linspace(-2, 2, 2 * 3 * COLUMNS).view(2, 3, COLUMNS)
        trial: Any = cls.__new__(cls)
        nn.Module.__init__(trial)
        for name, value in settings.items():
            setattr(trial, name, value)
        trial.weight = nn.Parameter(weight)
        trial.bias = None if bias is None else nn.Parameter(bias)
        trial.eval()
        expected = F.linear(x, weight, bias)
        try:
            y = cls.forward(trial, x)
        except FAILURES:
            return True
        if not isinstance(y, torch.Tensor) or y.shape != expected.shape:
            return True
        return not torch.allclose(y, expected, rtol=1e-5, atol=1e-5)


def stores_transposed(module: nn.Module) -> bool:
    """Whether the module's ``weight`` is [in, out] (GPT-2), not [out, in]; gpt-oss's experts."""
    return isinstance(module, Conv1D) or (isinstance(module, ExpertStack) and module.transposed)

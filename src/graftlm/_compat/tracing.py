"""torch's fake tensors and the autograd node at work. Seen in torch 2.8 to 2.13."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "ASKS_FOR_VALUES",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "in_backward_pass",
    "modes_off",
    "tree_leaves",
    "tree_map_only",
]

ASKS_FOR_VALUES = (DynamicOutputShapeException, DataDependentOutputException)
"""What an operator raises whose result, or its shape, depends on values that fakes lack."""

modes_off = _disable_current_modes
"""A context in which operators see neither fake tensors' mode nor any other."""


def in_backward_pass() -> bool:
    """Whether autograd is running a node on this thread."""
    return torch._C._current_autograd_node() is not None

"""Tensors that only have a shape, a type and a device, and compute their values when asked.

Seen in torch 2.6 to 2.13: `Tensor._make_wrapper_subclass` and `torch.utils._pytree.tree_map`. torch
documents `__torch_dispatch__` by examples that use both, and has no public name for either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

__all__ = ["mapped", "wrapper_tensor"]

TensorT = TypeVar("TensorT", bound=Tensor)


def wrapper_tensor(
    cls: type[TensorT], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> TensorT:
    """An instance of the subclass ``cls`` without storage, that requires no gradient."""
    tensor: TensorT = Tensor._make_wrapper_subclass(
        cls, shape, dtype=dtype, device=device, requires_grad=False
    )
    return tensor


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """``tree`` (nested tuples, lists and dicts) with ``function`` applied to each leaf."""
    return tree_map(function, tree)

"""Fake tensors: shapes and types without values.

Seen in torch 2.13: `torch._subclasses.fake_tensor.FakeTensor`. torch documents fake tensors
but has no public name for their class.
"""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["is_fake"]


def is_fake(tensor: Tensor) -> bool:
    """Whether ``tensor`` has a shape but no values, on whatever device it claims to be."""
    return isinstance(tensor, FakeTensor)

"""What a torch tensor knows of itself but has no public name for.

Seen in torch 2.13: `Tensor._version`, which its own documentation of in-place checks names, and
`Tensor._is_view`.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["is_view", "version_of"]


def version_of(tensor: Tensor) -> int:
    """A number that grows each time the tensor is written to; not for inference tensors."""
    return tensor._version


def is_view(tensor: Tensor) -> bool:
    """Whether autograd takes the tensor for a view of another."""
    return tensor._is_view()

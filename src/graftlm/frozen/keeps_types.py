"""Buffers whose types are part of a storage format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

__all__ = ["KeepsTypes"]


class KeepsTypes(nn.Module):
    """A module whose own buffers move with `.to(device)` and keep their types.

    `.half()` or `.to(torch.bfloat16)` changes parameters, and nothing else.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        stored = {id(buffer) for buffer in self.buffers(recurse=False)}

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in stored and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

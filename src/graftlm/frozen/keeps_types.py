"""Buffers whose types are part of a storage format."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from graftlm._compat.torch_objects import MovedModule

__all__ = ["KeepsTypes"]


class KeepsTypes(MovedModule):
    """A module whose own buffers move with `.to(device)` and keep their types.

    `.half()` or `.to(torch.bfloat16)` changes parameters, and nothing else.
    """

    def moving(self, move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """``move``, without changes of the types of the module's own buffers."""
        stored = {id(buffer) for buffer in self.buffers(recurse=False)}

        def keep_type(tensor: Tensor) -> Tensor:
            moved = move(tensor)
            if id(tensor) in stored and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        return keep_type

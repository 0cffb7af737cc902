"""Being told when a module is moved or cast, and its buffers as one mapping.

Seen in torch 2.13: `nn.Module._apply`, which `.to()`, `.half()` and their like call on each module,
and `nn.Module._buffers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

__all__ = ["MovedModule", "buffers_of"]


class MovedModule(nn.Module):
    """A module that may alter how its tensors are moved or cast, and learns of it afterwards."""

    def moving(self, move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """What to do with each tensor in place of ``move``; ``move`` itself by default."""
        return move

    def moved(self, move: Callable[[Tensor], Tensor]) -> None:
        """Called when all tensors of the module have been moved by ``move``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(self.moving(fn), recurse)  # type: ignore[no-untyped-call]
        self.moved(fn)
        return self


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The module's own buffers by name: the mapping itself, not a copy."""
    return module._buffers

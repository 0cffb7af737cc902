"""What torch's tensors and modules have no public name for.

Seen in torch 2.13: `nn.Module._apply`, which `.to()`, `.half()` and their like call on each module,
`nn.Module._buffers`, `nn.Module._parameters`, `Tensor._version`, which torch's own messages about
in-place changes name, and `Tensor._is_view`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; not imported when the package runs

__all__ = ["MovedModule", "buffers_of", "has_hooks", "is_view", "parameters_of", "version_of"]


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


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The module's own parameters by name: the mapping itself, not a copy."""
    return module._parameters


def version_of(tensor: Tensor) -> int:
    """A number that grows each time the tensor is written to; not for inference tensors."""
    return tensor._version


def is_view(tensor: Tensor) -> bool:
    """Whether autograd takes the tensor for a view of another."""
    return tensor._is_view()


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks. Seen in torch 2.6 to 2.13."""
    return bool(module._forward_hooks or module._forward_pre_hooks)

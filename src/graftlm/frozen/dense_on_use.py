"""The `weight` of a layer whose weight is stored: dense only while an operation reads it.

Some models read a layer's weight themselves: Mamba-2 reads the device of `in_proj.weight`, Mamba
multiplies by `dt_proj.weight`. `DenseOnUse` has shape, type and device without dequantising, and
dequantises for each operation that needs values. Autograd keeps it, not the dense matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graftlm._compat.torch_operator import is_mutable
from graftlm._compat.wrapper_tensor import mapped, wrapper_tensor
from graftlm.errors import ModelError
from graftlm.frozen.weight import FrozenWeight

__all__ = ["DenseOnUse"]


class DenseOnUse(Tensor):
    """A read-only tensor (out, in) over a `FrozenWeight`.

    Raises:
        ModelError: an operation writes to it.
    """

    frozen: FrozenWeight

    @staticmethod
    def __new__(cls, frozen: FrozenWeight) -> DenseOnUse:
        """Shape, type and device of the weight."""
        tensor = wrapper_tensor(cls, frozen.shape, frozen.dtype, frozen.device)
        tensor.frozen = frozen
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` on the dense weight."""
        if func is torch.ops.aten.detach.default:
            return cls(args[0].frozen)
        if is_mutable(func) and isinstance(args[0], cls):
            raise ModelError(
                f"{func} would change a weight that is stored as {args[0].frozen.format}: "
                "expected reads only; load the model with quantize=None to change its weights"
            )
        return func(*mapped(_dense, args), **mapped(_dense, kwargs or {}))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """The name of the format; printing values would dequantise them."""
        return f"DenseOnUse({tuple(self.shape)}, format={self.frozen.format})"


def _dense(value: Any) -> Any:
    return value.frozen.dequantize() if isinstance(value, DenseOnUse) else value

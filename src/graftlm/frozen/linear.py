"""A linear layer over a frozen weight in any storage format.

`y = x · Wᵀ + bias`, with W frozen. The product and its backward pass belong to the weight
(`FrozenWeight.product`); this module only holds the stored tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftlm._compat.fake import is_fake
from graftlm.frozen.dense import DenseWeight
from graftlm.frozen.dense_on_use import DenseOnUse
from graftlm.frozen.stored_weight import StoredWeight
from graftlm.frozen.weight import FrozenWeight, StorageSettings, WeightSettings

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; not imported when the package runs

__all__ = ["FrozenLinear", "frozen_weight"]


class FrozenLinear(StoredWeight):
    """A frozen linear layer ``(..., in_features) → (..., out_features)``.

    Args:
        weight: the stored weight, of shape ``(out_features, in_features)``.
        bias: ``(out_features,)`` in any floating-point type, or ``None``.
    """

    def __init__(self, weight: FrozenWeight, bias: Tensor | None = None) -> None:
        super().__init__(weight)
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(
        cls,
        linear: nn.Linear,
        format: type[FrozenWeight],
        settings: StorageSettings = WeightSettings(),  # noqa: B008 (it is immutable)
    ) -> Self:
        """Store the weight of ``linear`` in ``format``; the bias is shared with it."""
        return cls(format.quantize(linear.weight.detach(), settings), linear.bias)

    @property
    def weight(self) -> DenseOnUse:
        """The weight for model code that reads it; each operation dequantises it. Read-only."""
        return DenseOnUse(self.frozen)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` → ``(..., out_features)`` in the type of ``x``."""
        return self.frozen.product(x, self.bias)

    def extra_repr(self) -> str:
        """What `print(model)` shows inside the brackets."""
        parts = {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "format": self._frozen.format,
            **self._frozen.settings(),
        }
        return ", ".join(f"{name}={value}" for name, value in parts.items())


def frozen_weight(module: nn.Module) -> FrozenWeight | None:
    """The frozen weight of a module that computes ``x Wᵀ + b``, or ``None``.

    ``None`` for a weight that trains, for a subclass of `nn.Linear`, which may compute something
    else, and for a subclass of `Tensor`, which multiplies in a way of its own: call such a module.
    """
    if isinstance(module, StoredWeight):
        return module.frozen
    if type(module) not in (nn.Linear, Conv1D):
        return None
    weight: Tensor = module.weight  # type: ignore[assignment]
    plain = type(weight.data) is Tensor or is_fake(weight)  # a plan has fake ones
    if weight.requires_grad or not plain:
        return None
    return DenseWeight(weight if type(module) is nn.Linear else weight.T)

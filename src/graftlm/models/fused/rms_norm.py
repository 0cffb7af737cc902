"""RMS norm as a module: the weight of the one it stands for, the product in one pass."""

from __future__ import annotations

from torch import Tensor, nn

from graftlm.kernels.rms_norm import rms_norm

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """``y = x / √(mean(x²) + ε) · (w + c)`` over the last dimension; see `kernels/rms_norm.py`.

    Attributes:
        weight: (D,), the very parameter of the module it replaces, under the same name.
        eps: ε.
        shift: c: 0, or 1 where the model stores the weight's distance from one.
    """

    def __init__(self, weight: nn.Parameter, eps: float, shift: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        return rms_norm(x, self.weight, self.shift, self.eps)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}, shift={self.shift}"

"""Fused modules that replace those of transformers and read their inputs once.

RMSNorm       y = x / √(mean(x²) + ε) · (w + c)
GatedMLP      y = W_down (act(W_gate x) · W_up x)
OutputLinear  y = x Wᵀ + b, with one reading of W for the few rows of decoding
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftlm.kernels.decode_linear import MOST_ROWS, few_rows_linear, has_kernel
from graftlm.kernels.gated_unit import gated_unit
from graftlm.kernels.rms_norm import rms_norm

__all__ = ["GatedMLP", "OutputLinear", "RMSNorm"]


class RMSNorm(nn.Module):
    """``y = x / √(mean(x²) + ε) · (w + c)`` over the last dimension; see `kernels/rms_norm.py`.

    Attributes:
        weight: (D,), the same parameter, under the same name, as in the module it replaces.
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


class GatedMLP(nn.Module):
    """``y = W_down (act(W_gate x) · W_up x)``; the middle in one pass: `kernels/gated_unit.py`.

    The projections keep their names, so that code which replaces them by name still works.

    Attributes:
        gate_proj: (..., D) → (..., H).
        up_proj: (..., D) → (..., H).
        down_proj: (..., H) → (..., D).
        act: the activation's (k, a).
    """

    def __init__(
        self,
        gate_proj: nn.Module,
        up_proj: nn.Module,
        down_proj: nn.Module,
        act: tuple[float, float],
    ) -> None:
        super().__init__()
        self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        y: Tensor = self.down_proj(gated_unit(self.gate_proj(x), self.up_proj(x), self.act))
        return y


class OutputLinear(nn.Linear):
    """A linear layer with the parameters of another. Few rows without gradient read W once.

    The weight is the same parameter, so a tied weight stays tied.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        bias: Tensor | None = self.bias
        few = x.numel() <= MOST_ROWS * x.shape[-1] and not torch.is_grad_enabled()
        if few and bias is None and self._narrow() and has_kernel(x, self.weight):
            return few_rows_linear(x, self.weight)
        return F.linear(x, self.weight, bias)

    def _narrow(self) -> bool:
        """Whether the weight is narrower than float32, which PyTorch reads without conversion."""
        return self.weight.dtype in (torch.bfloat16, torch.float16)

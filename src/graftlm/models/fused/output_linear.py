"""The output layer of a language model, quick for the one row a token that decoding asks for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftlm.kernels.decode_linear import MOST_ROWS, few_rows_linear, has_kernel

__all__ = ["OutputLinear"]


class OutputLinear(nn.Linear):
    """A linear layer over the weight and bias of another; few rows without gradient read W once.

    A tied weight stays tied: it is the same parameter.
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
        """Whether there is something to win: PyTorch reads float32 as it is."""
        return self.weight.dtype in (torch.bfloat16, torch.float16)

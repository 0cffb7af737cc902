"""Linear layers for decoding on a processor, put in place of a model's own and taken out again.

PyTorch's product of bfloat16 on a processor without instructions for it reorders the weight in each
call: for 25 rows it takes three times as long as our kernel that reads the weight once, and for a
prompt three times as long as widening the weight to float32 first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftlm._compat.torch_objects import has_hooks
from graftlm.kernels.decode_linear import MOST_ROWS, few_rows_linear, has_kernel
from graftlm.kernels.lora_linear import factor_type
from graftlm.models.fused import OutputLinear
from graftlm.system import fast_bfloat16

__all__ = ["DecodingLinear", "put_in", "take_out"]

NARROW = (torch.bfloat16, torch.float16)


class DecodingLinear(OutputLinear):
    """A linear layer with the parameters of another, quick for few rows and for many."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.replaced = (linear,)  # a tuple, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        few = x.numel() <= MOST_ROWS * x.shape[-1]
        if few and has_kernel(x, self.weight):
            y = few_rows_linear(x, self.weight)
        else:
            y = F.linear(x.float(), self.weight.float()).to(x.dtype)
        bias: Tensor | None = self.bias
        return y if bias is None else y + bias


def put_in(model: nn.Module) -> list[str]:
    """Replace the plain linear layers with narrow weights on a slow processor; their names."""
    if fast_bfloat16():
        return []
    names = [
        name
        for name, module in model.named_modules()
        if name
        and type(module) is nn.Linear
        and factor_type(module.weight) != module.weight.dtype
        and module.weight.dtype in NARROW
        and type(module.weight.data) is Tensor
        and not has_hooks(module)
    ]
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, DecodingLinear(linear).train(linear.training))
    return names


def take_out(model: nn.Module, names: list[str]) -> None:
    """Put the model's own layers back."""
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, DecodingLinear)
        model.set_submodule(name, module.replaced[0])

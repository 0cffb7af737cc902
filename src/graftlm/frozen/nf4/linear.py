"""A linear layer whose weight is stored in 4 bits (arXiv 2305.14314, section 3).

`y = x · dequantize(W₄)ᵀ + bias`, with `W₄` frozen. The product and its backward live in
`graftlm.kernels.ops.linear`; this module only holds the stored tensors and keeps their types.
"""

from __future__ import annotations

from torch import Tensor, nn

from graftlm.frozen.keeps_types import KeepsTypes
from graftlm.kernels import ops
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["NF4Linear"]


class NF4Linear(KeepsTypes):
    """A frozen linear layer `(..., in_features) → (..., out_features)` over an `NF4Weight`.

    The stored tensors are buffers, so that they move with `.to(device)` and appear in
    `state_dict()`. Their types are part of the format: `.half()` or `.to(torch.bfloat16)` changes
    the bias and nothing else.

    Args:
        weight: the stored weight, of shape ``(out_features, in_features)``.
        bias: ``(out_features,)`` in any floating-point type, or ``None``.
    """

    codes: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    offset: Tensor | None

    def __init__(self, weight: NF4Weight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.block_size = weight.block_size
        self.weight_dtype = weight.dtype
        self.register_buffer("codes", weight.codes)
        self.register_buffer("absmax", weight.absmax)
        self.register_buffer("nested_absmax", weight.nested_absmax)
        self.register_buffer("offset", weight.offset)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, block_size: int = 64, double_quant: bool = True
    ) -> NF4Linear:
        """Quantise the weight of ``linear``; the bias is shared with it."""
        weight = ops.quantize(linear.weight.detach(), block_size, double_quant)
        return cls(weight, linear.bias)

    @property
    def weight4(self) -> NF4Weight:
        """The stored weight (a view of the buffers, not a copy)."""
        return NF4Weight(
            codes=self.codes,
            absmax=self.absmax,
            nested_absmax=self.nested_absmax,
            offset=self.offset,
            shape=(self.out_features, self.in_features),
            dtype=self.weight_dtype,
            block_size=self.block_size,
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` → ``(..., out_features)`` in the type of ``x``."""
        return ops.linear(x, self.weight4, self.bias)

    def extra_repr(self) -> str:
        """What `print(model)` shows inside the brackets."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, block_size={self.block_size}, "
            f"double_quant={self.nested_absmax is not None}"
        )

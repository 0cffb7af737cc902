"""LoRA beside a frozen linear layer (arXiv 2106.09685).

    y = W x + s · B A x        s = alpha / r, or alpha / √r with rsLoRA (arXiv 2312.03732)

W [out, in] is frozen and may be stored in any form (16-bit, NF4, GPT-2's transposed `Conv1D`).
A [r, in] starts Kaiming-uniform and B [out, r] at zero, so that step 0 equals the base model. Both
are float32 whatever the base is: in 16 bits a small Adam step is lost to rounding.

    W  base      A  lora_A      B  lora_B      r  rank      s  scaling
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.pytorch_utils import Conv1D

from graftlm.adapters.low_rank import add_low_rank
from graftlm.frozen.nf4.linear import NF4Linear
from graftlm.kernels import native, ops
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["LoRALinear", "adapter_device", "adapter_scaling", "linear_shape"]


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """``(out_features, in_features)`` of a module that computes ``x Wᵀ + b``, else ``None``."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None


def adapter_scaling(rank: int, alpha: float, use_rslora: bool) -> float:
    """The factor s in front of B A."""
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank


def adapter_device(base: nn.Module) -> torch.device:
    """Adapters live where the base's weights live (a 4-bit base has buffers, no parameters)."""
    tensors = itertools.chain(base.parameters(), base.buffers())
    return next(tensors, torch.empty(0)).device


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update beside it.

    Args:
        base: the layer to adapt; anything `linear_shape` knows. A plain or 4-bit one is multiplied
            together with the update; any other is called.
        rank: r, the inner dimension of the update.
        alpha: numerator of the scaling.
        dropout: probability of dropping an input of the update while training.
        use_rslora: scale by alpha / √r.

    A is drawn from torch's global generator: seed it before the adapters are made.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_rslora: bool = False,
    ) -> None:
        super().__init__()
        shape = linear_shape(base)
        if shape is None:
            raise TypeError(f"{type(base).__name__} is not a linear layer")
        self.out_features, self.in_features = shape
        self.rank, self.alpha, self.dropout, self.use_rslora = rank, alpha, dropout, use_rslora
        self.scaling = adapter_scaling(rank, alpha, use_rslora)
        self.enabled = True
        self.base = base
        like = torch.empty(0, dtype=torch.float32, device=adapter_device(base))
        self.lora_A = nn.Parameter(like.new_empty(rank, self.in_features))
        self.lora_B = nn.Parameter(like.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the base's output type."""
        if not self.enabled:
            return self.base(x)  # type: ignore[no-any-return]
        drops = self.dropout > 0 and self.training
        weight = None if drops else self._frozen(x)
        if weight is not None:
            update = (self.lora_A, self.lora_B, self.scaling)
            return ops.lora_linear(x, weight, self.bias, *update)
        y: Tensor = self.base(x)
        return add_low_rank(
            y, F.dropout(x, self.dropout) if drops else x, self.lora_A, self.lora_B, self.scaling
        )

    def _frozen(self, x: Tensor) -> NF4Weight | Tensor | None:
        """The base's weight where one kernel does the whole product; ``None``: call the base."""
        if isinstance(self.base, NF4Linear):
            return self.base.weight4
        if type(self.base) is not nn.Linear or self.base.weight.requires_grad:
            return None
        weight = self.base.weight
        # Not a subclass with products of its own; fake tensors are a plan's.
        plain = type(weight.data) in (Tensor, FakeTensor)
        return weight if plain and native.takes(x) and native.takes(weight) else None

    @torch.no_grad()
    def delta(self) -> Tensor:
        """``s · B A`` in float32, laid out as the base's weight: [out, in], Conv1D [in, out]."""
        delta = (self.lora_B @ self.lora_A) * self.scaling
        return delta.T if isinstance(self.base, Conv1D) else delta

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for model code that asks a layer for its type or device."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias  # type: ignore[return-value]

    def extra_repr(self) -> str:
        """The adapter's settings in ``print(model)``."""
        return f"rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}"

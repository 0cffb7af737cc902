"""LoRA on a frozen linear layer (arXiv 2106.09685).

    y = W x + s · B A x        s = alpha / r, or alpha / √r with rsLoRA (arXiv 2312.03732)

W [out, in] is frozen and may be stored in any form (16-bit, a weight format, GPT-2's transposed
`Conv1D`). A [r, in] starts Kaiming-uniform and B [out, r] at zero, so that step 0 equals the base
model.

    W  base      A  lora_A      B  lora_B      r  rank      s  scaling
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftlm.adapters.adapter import DEFAULT, Adapter, register_adapter
from graftlm.adapters.layers import linear_shape
from graftlm.adapters.through_merge import ThroughMerge
from graftlm.frozen.embedding import FrozenOutput
from graftlm.frozen.linear import frozen_weight
from graftlm.kernels.low_rank import add_low_rank

__all__ = ["LoRALinear"]


@register_adapter
class LoRALinear(Adapter):
    """A frozen linear layer with a trainable low-rank update.

    If the base has a frozen weight, one operation computes its product and the update. Any other
    base is called as a module. The arguments are those of `Adapter`.
    """

    variant = "lora"
    beside = "linear layer"
    peft_keys: ClassVar = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    lora_A: nn.Parameter  # noqa: N815, the name in checkpoints
    lora_B: nn.Parameter  # noqa: N815
    trains_through_merge: ClassVar[bool] = True
    """Whether the merged weight can stand for the update in training; see `through_merge.py`."""
    through: ThroughMerge | None = None
    """Set while the adapter trains through its merge; see `merge_aware.py`."""

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_rslora: bool = False,
        name: str = DEFAULT,
    ) -> None:
        super().__init__(base, rank, alpha, dropout, use_rslora, name)
        self.out_features, self.in_features = linear_shape(base) or (0, 0)

    @classmethod
    def adapts(cls, module: nn.Module) -> bool:
        """Linear layers, except 8-bit ones, which no longer have 16-bit weights."""
        return linear_shape(module) is not None and not isinstance(module, FrozenOutput)

    @classmethod
    def shapes(cls, base: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        """A [r, in] and B [out, r]."""
        rows, columns = linear_shape(base) or (0, 0)
        return {"lora_A": (rank, columns), "lora_B": (rows, rank)}

    def reset(self) -> None:
        """Draw A as torch draws a linear layer; set B to zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of the update ``s · B A``; a variant may derive them."""
        return self.lora_A, self.lora_B

    def product(self, base: nn.Module, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the base's output type."""
        if self.through is not None:
            return self.through.product(self, base, x)
        weight = None if self.dropout > 0 and self.training else frozen_weight(base)
        if weight is None:
            return self.added(base, base(x), x)
        A, B = self.factors()
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        return weight.product_with_update(x, bias, A, B, self.scaling)

    def without(self, x: Tensor) -> Tensor:
        """The base's output for ``x``; training through the merge changes the stored base."""
        return super().without(x) if self.through is None else self.product(self.base, x)

    def added(self, base: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        """``y + s · B A x``, in place if ``y`` may be changed."""
        dropped = F.dropout(x, self.dropout) if self.dropout > 0 and self.training else x
        return add_low_rank(y, dropped, *self.factors(), self.scaling)

    @torch.no_grad()
    def delta(self, weight: Tensor | None = None) -> Tensor:
        """``s · B A`` in float32: [out, in]."""
        A, B = self.factors()
        return (B @ A) * self.scaling

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias  # type: ignore[return-value]

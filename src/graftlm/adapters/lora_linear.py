"""LoRA on a frozen linear layer (arXiv 2106.09685).

    y = W x + s · B A x        s = alpha / r, or alpha / √r with rsLoRA (arXiv 2312.03732)

W [out, in] is frozen and may be stored in any form (16-bit, a weight format, GPT-2's transposed
`Conv1D`). A [r, in] starts Kaiming-uniform and B [out, r] at zero, so that step 0 equals the base
model.

    W  base      A  lora_A      B  lora_B      r  rank      s  scaling
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftlm.adapters.adapter import DEFAULT, register_adapter
from graftlm.adapters.layers import linear_shape
from graftlm.adapters.lora_bias import WithBias
from graftlm.adapters.through_merge import ThroughMerge
from graftlm.frozen.embedding import FrozenOutput
from graftlm.frozen.linear import frozen_weight
from graftlm.kernels.low_rank import add_low_rank

__all__ = ["LoRALinear"]


@register_adapter
class LoRALinear(WithBias):
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
    taken_A: Tensor | None  # noqa: N815
    taken_B: Tensor | None  # noqa: N815
    """A₀ [r, in] and B₀ [out, r] if the adapter subtracts its start; see `begin_from`."""
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
        self.register_buffer("taken_A", None, persistent=False)
        self.register_buffer("taken_B", None, persistent=False)

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

    @torch.no_grad()
    def begin_from(self, A: Tensor, B: Tensor, *, taken: bool = False) -> None:
        """Start from A [r, in] and B [out, r].

        Args:
            A: the values of `lora_A`.
            B: the values of `lora_B`.
            taken: subtract this start, so that the adapter begins as no change although B A is not
                zero: ``y = W x + s · (B A - B₀ A₀) x``. PEFT changes the base instead, to
                W - s · B₀ A₀. Here the base stays; the update is one of rank 2r.
        """
        self.lora_A.copy_(A)
        self.lora_B.copy_(B)
        if taken:
            for name, parameter in (("taken_A", self.lora_A), ("taken_B", self.lora_B)):
                self.register_buffer(name, parameter.detach().clone(), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of the update ``s · B A``; a variant may derive them.

        With a start that is subtracted: ``[A; A₀]`` and ``[B, -B₀]``.
        """
        if self.taken_A is None or self.taken_B is None:
            return self.lora_A, self.lora_B
        return torch.cat((self.lora_A, self.taken_A)), torch.cat((self.lora_B, -self.taken_B), 1)

    @property
    def saved_rank(self) -> int:
        """The rank in PEFT's file: 2r with a start that is subtracted."""
        return self.rank if self.taken_A is None else 2 * self.rank

    def peft_state(self) -> dict[str, Tensor]:
        """The trained tensors; a start that is subtracted is written with them, as PEFT does."""
        state = super().peft_state()
        if self.taken_A is not None:
            A, B = self.factors()
            state |= {self.peft_keys["lora_A"]: A.detach(), self.peft_keys["lora_B"]: B.detach()}
        return state

    @torch.no_grad()
    def load_peft_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in the tensors of a file of `saved_rank`."""
        if self.taken_A is None or self.taken_B is None:
            super().load_peft_state(state)
            return
        self.load_biases(state)
        A, B = state[self.peft_keys["lora_A"]], state[self.peft_keys["lora_B"]]
        self.lora_A.copy_(A[: self.rank])
        self.taken_A.copy_(A[self.rank :])
        self.lora_B.copy_(B[:, : self.rank])
        self.taken_B.copy_(-B[:, self.rank :])

    def product(self, base: nn.Module, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the base's output type."""
        if self.through is not None:
            return self.through.product(self, base, x)
        weight = None if self.dropout > 0 and self.training else frozen_weight(base)
        if weight is None:
            return self.added(base, base(x), x)
        A, B = self.factors()
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        if self.trains_biases:
            bias = self.bias_in_use(base, x)
        return weight.product_with_update(x, bias, A, B, self.scaling)

    def without(self, x: Tensor) -> Tensor:
        """The base's output for ``x``; training through the merge changes the stored base."""
        return super().without(x) if self.through is None else self.product(self.base, x)

    def added(self, base: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        """``y + s · B A x``, in place if ``y`` may be changed."""
        dropped = F.dropout(x, self.dropout) if self.dropout > 0 and self.training else x
        y = add_low_rank(y, dropped, *self.factors(), self.scaling)
        change = self.bias_change(base, x) if self.trains_biases else None
        return y if change is None else y + change.to(y.dtype)

    @torch.no_grad()
    def delta(self, weight: Tensor | None = None) -> Tensor:
        """``s · B A`` in float32: [out, in]."""
        A, B = self.factors()
        return (B @ A).mul_(self.scaling)

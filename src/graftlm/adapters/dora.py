"""DoRA on a frozen linear layer (arXiv 2402.09353): the length of each row is trained apart.

    V = W + s · B A                    the direction, as in LoRA
    g = m / ‖V‖                        [out]; the norm is that of each row, and a constant for the
                                       gradient (section 4.3 of the paper)
    y = g ⊙ (V x) + b

W [out, in] is frozen; m [out] starts at ‖W‖, so that step 0 equals the base model. V and B A are
never formed: the norms follow from two thin products,

    ‖V‖² = ‖W‖² + 2 s · ⟨W Aᵀ, B⟩ + s² · ⟨B (A Aᵀ), B⟩        each row by itself

with W Aᵀ [out, r], A Aᵀ [r, r], and ‖W‖² [out] computed once. With dropout D, PEFT's form holds:

    y = W x + b + (g - 1) ⊙ (W D(x)) + g ⊙ (s · B A D(x))

    W  base      A  lora_A      B  lora_B      m  magnitude      s  scaling      g  gain
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftlm.adapters.adapter import register_adapter
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.frozen.dense import DenseWeight
from graftlm.frozen.linear import FrozenLinear, frozen_weight
from graftlm.frozen.weight import FrozenWeight
from graftlm.kernels.low_rank import add_low_rank
from graftlm.models.fused import OutputLinear

__all__ = ["DoRALinear"]

_PLAIN = (nn.Linear, Conv1D, OutputLinear)
SMALLEST = 1e-12
"""A shorter row is taken to be this long: a row of zeros then gives zeros, not NaN."""


@register_adapter
class DoRALinear(LoRALinear):
    """A frozen linear layer with a low-rank update and a trained length of each row."""

    variant = "dora"
    peft_keys: ClassVar = {**LoRALinear.peft_keys, "magnitude": "lora_magnitude_vector"}
    peft_config: ClassVar = {"peft_type": "LORA", "use_dora": True}
    trains_through_merge = False

    magnitude: nn.Parameter
    _squares: Tensor | None = None
    """‖W‖² of each row, once it was needed. Derived from the base, so it is in no state."""

    @classmethod
    def adapts(cls, module: nn.Module) -> bool:
        """Layers whose weight can be read: of a weight format, or plain `nn.Linear`, `Conv1D`."""
        readable = isinstance(module, FrozenLinear) or type(module) in _PLAIN
        return readable and super().adapts(module)

    @classmethod
    def shapes(cls, base: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        """A [r, in], B [out, r] and m [out]."""
        shapes = super().shapes(base, rank)
        return {**shapes, "magnitude": shapes["lora_B"][:1]}

    @torch.no_grad()
    def reset(self) -> None:
        """Start as LoRA does, with the rows as long as the base's."""
        super().reset()
        if not self.magnitude.is_meta:
            # Not kept: a model that runs from the disk reads its weights only later.
            squares = _squares(_weight(self.base).dequantize())
            self.magnitude.copy_(squares.sqrt().clamp(min=SMALLEST))

    def product(self, base: nn.Module, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the base's output type."""
        if self.dropout > 0 and self.training:
            return self.added(base, base(x), x)
        weight = _weight(base)
        A, B = self.factors()
        z = weight.product_with_update(x, None, A, B, self.scaling)
        y = z * self.gain(weight)
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        if self.trains_biases:
            bias = self.bias_in_use(base, x)
        return (y if bias is None else y + bias).to(z.dtype)

    def added(self, base: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        """``y + (g - 1) ⊙ W x + g ⊙ s · B A x``."""
        dropped = F.dropout(x, self.dropout) if self.dropout > 0 and self.training else x
        weight = _weight(base)
        gain = self.gain(weight)
        plain = weight.product(dropped)
        update = add_low_rank(torch.zeros_like(plain), dropped, *self.factors(), self.scaling)
        change = self.bias_change(base, x) if self.trains_biases else None
        total = y + (gain - 1) * plain + gain * update
        return (total if change is None else total + change).to(y.dtype)

    def gain(self, weight: FrozenWeight) -> Tensor:
        """``g = m / ‖W + s · B A‖``: [out] in float32, differentiable in m alone."""
        gain: Tensor = self.magnitude / self._row_norms(weight)
        return gain

    @torch.no_grad()
    def _row_norms(self, weight: FrozenWeight) -> Tensor:
        """‖W + s · B A‖ of each row: [out]."""
        A, B = self.factors()
        across = weight.product(A.to(weight.dtype)).T  # W Aᵀ
        squares = self._row_squares(weight)
        squares = squares + 2 * self.scaling * (across * B).sum(1)
        squares = squares + self.scaling**2 * ((B @ (A @ A.T)) * B).sum(1)
        return squares.clamp(min=0).sqrt().clamp(min=SMALLEST)

    def _row_squares(self, weight: FrozenWeight) -> Tensor:
        if self._squares is None or self._squares.device != weight.device:
            self._squares = _squares(weight.dequantize())
        return self._squares

    @torch.no_grad()
    def delta(self, weight: Tensor | None = None) -> Tensor:
        """``g ⊙ (W + s · B A) - W`` in float32: [out, in], with the norms of the given W."""
        assert weight is not None, "the change of DoRA depends on the weight"
        W = weight.float()
        V = W + super().delta(weight)
        gain = self.magnitude / _squares(V).sqrt().clamp(min=SMALLEST)
        return V.mul_(gain[:, None]).sub_(W)


def _weight(base: nn.Module) -> FrozenWeight:
    """The weight of ``base`` [out, in], also if somebody lets it train."""
    frozen = frozen_weight(base)
    if frozen is not None:
        return frozen
    weight = cast("Tensor", base.weight).detach()
    return DenseWeight(weight.T if isinstance(base, Conv1D) else weight)


@torch.no_grad()
def _squares(weight: Tensor) -> Tensor:
    """‖W‖² of each row of W [out, in], in float32."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    return norms.square()

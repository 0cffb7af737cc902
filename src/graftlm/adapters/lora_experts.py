"""LoRA on the weights of all experts of one projection: an update of its own for each expert.

    y_i = W_e x_i + s · B_e A_e x_i        e: the expert of row i;  s = alpha / r, or alpha / √r

W is E frozen matrices [out, in] in any form of storage (`frozen/experts.py`). A_e [r, in] starts
Kaiming-uniform and B_e [out, r] at zero. PEFT adapts such weights when `target_parameters` names
them and stores each factor as one matrix:

    lora_A.weight [E · r, in]     row e · r + k is row k of A_e
    lora_B.weight [out, r · E]    column k · E + e is column k of B_e

    W  base      A  lora_A [E, r, in]      B  lora_B [E, out, r]      r  rank      s  scaling
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftlm.adapters.adapter import Adapter, register_adapter
from graftlm.frozen.experts import ExpertStack, hit, joined
from graftlm.kernels.low_rank import add_low_rank

__all__ = ["LoRAExperts"]


@register_adapter
class LoRAExperts(Adapter):
    """The experts of one projection with a trainable low-rank update each.

    The arguments are those of `Adapter`; an input that is dropped is dropped for its expert alone.
    """

    variant = "lora"
    beside = "stack of experts"
    peft_keys: ClassVar = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    lora_A: nn.Parameter  # noqa: N815, the name in checkpoints
    lora_B: nn.Parameter  # noqa: N815
    base: ExpertStack

    @classmethod
    def adapts(cls, module: nn.Module) -> bool:
        """The experts of one projection, in any form of storage."""
        return isinstance(module, ExpertStack)

    @classmethod
    def shapes(cls, base: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        """A [E, r, in] and B [E, out, r]."""
        experts, rows, columns = cast("ExpertStack", base).shape
        return {"lora_A": (experts, rank, columns), "lora_B": (experts, rows, rank)}

    def reset(self) -> None:
        """Draw each A as torch draws a linear layer; set B to zero."""
        nn.init.kaiming_uniform_(self.lora_A.flatten(0, 1), a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor, counts: Sequence[int] = (), bias: Tensor | None = None) -> Tensor:
        """[N, in] → [N, out]; the arguments are those of `ExpertStack.forward`."""
        if self.enabled:
            return self.product(self.base, x, counts, bias)
        y: Tensor = self.base(x, counts, bias)
        return y

    def product(
        self,
        base: nn.Module,
        x: Tensor,
        counts: Sequence[int] = (),
        bias: Tensor | None = None,
    ) -> Tensor:
        """The experts' products and updates, by one operation a hit expert if there is none."""
        stack = cast("ExpertStack", base)
        if self.dropout > 0 and self.training:
            return self.added(base, stack(x, counts, bias), x, counts)
        As, Bs = self.lora_A.unbind(), self.lora_B.unbind()
        parts = [
            stack.matrix(e).product_with_update(
                rows, None if bias is None else bias[e], As[e], Bs[e], self.scaling
            )
            for e, rows in hit(x, counts)
        ]
        return joined(parts, x, stack.shape[1])

    def added(self, base: nn.Module, y: Tensor, x: Tensor, counts: Sequence[int] = ()) -> Tensor:
        """``y + s · B_e A_e x``."""
        dropped = F.dropout(x, self.dropout) if self.dropout > 0 and self.training else x
        As, Bs = self.lora_A.unbind(), self.lora_B.unbind()
        ys = torch.split_with_sizes(y, list(counts))
        parts = [
            add_low_rank(ys[e], rows, As[e], Bs[e], self.scaling)
            for e, rows in hit(dropped, counts)
        ]
        return joined(parts, y, y.shape[-1])

    @torch.no_grad()
    def delta(self, weight: Tensor | None = None) -> Tensor:
        """``s · B_e A_e`` in float32: [E, out, in]."""
        return (self.lora_B @ self.lora_A).mul_(self.scaling)

    def peft_state(self) -> dict[str, Tensor]:
        """The factors as PEFT stores them."""
        A, B = self.lora_A.detach(), self.lora_B.detach()
        return {
            "lora_A.weight": A.flatten(0, 1),
            "lora_B.weight": B.permute(1, 2, 0).flatten(1, 2),
        }

    @classmethod
    def peft_shapes(cls, base: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        """A [E · r, in] and B [out, r · E]."""
        experts, rows, columns = cast("ExpertStack", base).shape
        return {
            "lora_A.weight": (experts * rank, columns),
            "lora_B.weight": (rows, rank * experts),
        }

    def load_peft_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in factors as PEFT stores them."""
        experts, _, rank = self.lora_B.shape
        A, B = state["lora_A.weight"], state["lora_B.weight"]
        super().load_peft_state(
            {
                "lora_A.weight": A.view(experts, rank, -1),
                "lora_B.weight": B.view(-1, rank, experts).permute(2, 0, 1).contiguous(),
            }
        )

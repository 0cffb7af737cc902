"""LoRA on a frozen embedding table (arXiv 2106.09685).

    e = W[i] + s · (B A)ᵀ[i]

W [vocab, dim] is frozen, A [r, vocab] starts at zero, and B [dim, r] is drawn from a normal
distribution. This is the reverse of the linear layer, because the lookup is in A. If a table
multiplies its output by a constant (Gemma's √dim), the update is multiplied by it too.

    W  base      A  lora_A      B  lora_B      r  rank      s  scaling
"""

from __future__ import annotations

import inspect
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftlm.adapters.adapter import DEFAULT, Adapter, register_adapter

__all__ = ["LoRAEmbedding"]


@register_adapter
class LoRAEmbedding(Adapter):
    """A frozen embedding table with a trainable low-rank update.

    A head that is tied to the table keeps the frozen weight: the update changes the input
    embeddings, not the logits (as in PEFT). The arguments are those of `Adapter`; ``dropout`` is
    not used, because a token id cannot be dropped (as in PEFT).
    """

    variant = "lora"
    beside = "token table"
    peft_keys: ClassVar = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}
    lora_A: nn.Parameter  # noqa: N815, the name in checkpoints
    lora_B: nn.Parameter  # noqa: N815

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_rslora: bool = False,
        name: str = DEFAULT,
    ) -> None:
        super().__init__(base, rank, alpha, 0.0, use_rslora, name)
        assert isinstance(base, nn.Embedding)
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.padding_idx = base.padding_idx

    @classmethod
    def adapts(cls, module: nn.Module) -> bool:
        """Token tables only. A position table has more inputs than the ids."""
        if not isinstance(module, nn.Embedding):
            return False
        return len(inspect.signature(type(module).forward).parameters) == 2

    @classmethod
    def shapes(cls, base: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        """A [r, vocab] and B [dim, r]."""
        assert isinstance(base, nn.Embedding)
        return {"lora_A": (rank, base.num_embeddings), "lora_B": (base.embedding_dim, rank)}

    def reset(self) -> None:
        """Set A to zero; draw B from a normal distribution."""
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def product(self, base: nn.Module, x: Tensor) -> Tensor:
        """Map token ids (...) to (..., embedding_dim), in the table's type."""
        return self.added(base, base(x), x)

    def added(self, base: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        """``y`` (..., embedding_dim) plus the update of the token ids ``x`` (...)."""
        looked_up = F.embedding(x, self.lora_A.T, self.padding_idx)
        update = (looked_up @ self.lora_B.T) * self.scaling * _output_scale(base, self.lora_B)
        return (y + update).to(y.dtype)

    @torch.no_grad()
    def delta(self, weight: Tensor | None = None) -> Tensor:
        """``s · (B A)ᵀ`` in float32: [vocab, dim], before the table's own output scale."""
        return (self.lora_B @ self.lora_A).T * self.scaling


def _output_scale(base: nn.Module, like: Tensor) -> Tensor | float:
    scale: Tensor | float = getattr(base, "embed_scale", 1.0)
    return scale.to(like.dtype) if isinstance(scale, Tensor) else scale

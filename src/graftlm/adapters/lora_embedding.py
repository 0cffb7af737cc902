"""LoRA beside a frozen embedding table (arXiv 2106.09685).

    e = W[i] + s · (B A)ᵀ[i]

W [vocab, dim] is frozen, A [r, vocab] starts at zero, B [dim, r] normal: the mirror image of the
linear layer, because here A is the side that is looked up. A table that multiplies its output by a
constant (Gemma's √dim) multiplies the update by the same constant.

    W  base      A  lora_A      B  lora_B      r  rank      s  scaling
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftlm.adapters.lora_linear import adapter_device, adapter_scaling

__all__ = ["LoRAEmbedding"]


class LoRAEmbedding(nn.Module):
    """A frozen embedding table with a trainable low-rank update beside it.

    A head whose weight is tied to the table keeps the frozen weight: the update changes what the
    model reads, not what it writes (PEFT's meaning too).

    Args:
        base: the table to adapt.
        rank: r, the inner dimension of the update.
        alpha: numerator of the scaling.
        use_rslora: scale by alpha / √r.

    B is drawn from torch's global generator: seed it before the adapters are made.
    """

    def __init__(
        self, base: nn.Embedding, rank: int, alpha: float, use_rslora: bool = False
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.padding_idx = base.padding_idx
        self.rank, self.alpha, self.use_rslora = rank, alpha, use_rslora
        self.scaling = adapter_scaling(rank, alpha, use_rslora)
        self.enabled = True
        self.base = base
        like = torch.empty(0, dtype=torch.float32, device=adapter_device(base))
        self.lora_A = nn.Parameter(like.new_zeros(rank, self.num_embeddings))
        self.lora_B = nn.Parameter(like.new_empty(self.embedding_dim, rank))
        nn.init.normal_(self.lora_B)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (...) to (..., embedding_dim), in the table's type."""
        e: Tensor = self.base(ids)
        if not self.enabled:
            return e
        looked_up = F.embedding(ids, self.lora_A.T, self.padding_idx)
        update = (looked_up @ self.lora_B.T) * self.scaling * self._output_scale()
        return (e + update).to(e.dtype)

    def _output_scale(self) -> Tensor | float:
        scale: Tensor | float = getattr(self.base, "embed_scale", 1.0)
        return scale.to(self.lora_B.dtype) if isinstance(scale, Tensor) else scale

    @torch.no_grad()
    def delta(self) -> Tensor:
        """``s · (B A)ᵀ`` in float32: [vocab, dim], before the table's own output scale."""
        return (self.lora_B @ self.lora_A).T * self.scaling

    @property
    def weight(self) -> Tensor:
        """The frozen table."""
        return self.base.weight

    def extra_repr(self) -> str:
        """The adapter's settings in ``print(model)``."""
        return f"rank={self.rank}, scaling={self.scaling:g}"

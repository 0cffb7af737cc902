"""An embedding table and an output layer over a frozen weight that the two may share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from graftlm._compat.torch_objects import MovedModule
from graftlm.frozen.stored_weight import StoredWeight

__all__ = ["FrozenEmbedding", "FrozenOutput"]


class FrozenEmbedding(MovedModule):
    """A frozen table ``ids (...) → (..., embedding_dim)``.

    This class and `FrozenOutput` have no attribute `weight`, because model code that reads it would
    ignore the factor or the scales of the rows.

    Args:
        rows: the table; a tied head holds the same one.
        dtype: type of the result.
        factor: multiplies it (Gemma's √D), rounded to ``dtype`` as transformers does.
        padding_idx: kept for code that reads it; it has no effect, because nothing trains.
    """

    def __init__(
        self,
        rows: StoredWeight,
        dtype: torch.dtype,
        factor: float = 1.0,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows.frozen.shape
        self.dtype, self.factor, self.padding_idx = dtype, factor, padding_idx
        self.rows = rows

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ``ids``."""
        e: Tensor = self.rows(ids).to(self.dtype)
        return e if self.factor == 1.0 else e * torch.tensor(self.factor, dtype=self.dtype)

    def moved(self, move: Callable[[Tensor], Tensor]) -> None:
        """Change the type of the result as for a plain table."""
        self.dtype = move(torch.empty(0, dtype=self.dtype)).dtype

    def extra_repr(self) -> str:
        """Sizes in ``print(model)``."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class FrozenOutput(nn.Module):
    """A frozen output layer ``(..., in_features) → (..., out_features)``.

    Args:
        rows: the weight; of a tied head the table's own.
        bias: (out_features,) or ``None``.
    """

    def __init__(self, rows: StoredWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = rows.frozen.shape
        self.rows = rows
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all tokens. For an empty input, as in training, the weight is not read."""
        if not x.numel():
            return x.new_empty(*x.shape[:-1], self.out_features)
        return self.rows.frozen.product(x, self.bias)

    def extra_repr(self) -> str:
        """Sizes in ``print(model)``."""
        return f"{self.in_features}, {self.out_features}"

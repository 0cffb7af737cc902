"""A dense weight with the contract of a frozen weight, without a storage format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from graftlm.frozen.weight import FrozenWeight, ScaledRows, StorageSettings
from graftlm.kernels import ops
from graftlm.kernels.lora_linear import has_dense_kernel
from graftlm.kernels.low_rank import add_low_rank

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; not imported when the package runs

__all__ = ["DenseWeight"]


class DenseWeight(FrozenWeight):
    """A view of a dense weight.

    Args:
        weight: (out, in); may be a transposed view, as of GPT-2's `Conv1D`.
    """

    format = "dense"

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """``(out_features, in_features)``."""
        out_features, in_features = self.weight.shape
        return out_features, in_features

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The type of the weight."""
        return self.weight.dtype

    @classmethod
    def quantize(cls, weight: Tensor, settings: StorageSettings) -> Self:
        """The unchanged weight; nothing is rounded."""
        return cls(weight.detach())

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight in ``dtype``, by default its own type; a copy only if the type differs."""
        return self.weight.detach() if dtype is None else self.weight.detach().to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The weight as the only tensor."""
        return {"dense": self.weight}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over another tensor."""
        return type(self)(tensors["dense"])

    def scaled_rows(self, dtype: torch.dtype) -> ScaledRows:
        """The weight in its own type."""
        return ScaledRows(self.weight)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, in float32."""
        return F.embedding(ids, self.weight).float()

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x Wᵀ + bias`` by PyTorch's product."""
        return F.linear(x, self.weight, bias)

    def product_with_update(
        self, x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        """By one kernel, if there is one for the device and the types of both factors."""
        weight = self.weight
        if weight.is_contiguous() and has_dense_kernel(x, weight, A, B):
            return ops.lora_linear(x, weight, bias, A, B, scaling)
        return add_low_rank(F.linear(x, weight, bias), x, A, B, scaling)

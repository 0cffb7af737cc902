"""4-bit NormalFloat (arXiv 2305.14314, section 3) as a format of frozen weights.

The stored form is `graftlm.kernels.nf4.weight.NF4Weight`; the products run on it by kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graftlm.frozen.formats import register_format
from graftlm.frozen.nf4.checkpoint import BitsandbytesFormat
from graftlm.frozen.nf4.error_feedback import feedback
from graftlm.frozen.nf4.part import quantized_share
from graftlm.frozen.share import DenseSource, Share, ShareOfWeight
from graftlm.frozen.weight import FrozenWeight, StorageSettings
from graftlm.kernels import ops
from graftlm.kernels.nf4.double_quant import GROUP_SIZE
from graftlm.kernels.nf4.weight import NF4Weight

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; not imported when the package runs

__all__ = ["FrozenNF4"]


@register_format
class FrozenNF4(FrozenWeight):
    """A frozen weight in NF4.

    Args:
        stored: the weight, of shape ``(out_features, in_features)``.
    """

    format = "nf4"
    scales = frozenset({"absmax", "nested_absmax", "offset"})
    checkpoint = BitsandbytesFormat

    def __init__(self, stored: NF4Weight) -> None:
        self.stored = stored

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """``(out_features, in_features)``."""
        out_features, in_features = self.stored.shape
        return out_features, in_features

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The type the weight had before it was quantised."""
        return self.stored.dtype

    @classmethod
    def quantize(cls, weight: Tensor, settings: StorageSettings) -> Self:
        """Quantise, bit-identical to bitsandbytes on a CPU."""
        return cls(ops.quantize(weight, settings.block_size, settings.double_quant))

    @classmethod
    def quantize_share(
        cls,
        source: DenseSource,
        settings: StorageSettings,
        share: Share,
        device: torch.device,
    ) -> ShareOfWeight:
        """Read and quantise only the blocks that a rank holds; the same bits as `quantize`."""
        stored, parts = quantized_share(source, settings, share, device)
        return ShareOfWeight(cls(stored), parts)

    @classmethod
    def quantize_for(
        cls,
        weight: Tensor,
        settings: StorageSettings,
        gram: Tensor,
        dtype: torch.dtype,
        start: FrozenWeight | None = None,
    ) -> Self:
        """By second-order error feedback."""
        known = start.stored if isinstance(start, FrozenNF4) else None
        return cls(feedback(weight, gram, settings.block_size, settings.double_quant, dtype, known))

    def of_type(self, dtype: torch.dtype) -> Self:
        """The same codes, decoded to ``dtype``."""
        return type(self)(dataclasses.replace(self.stored, dtype=dtype))

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int],
        dtype: torch.dtype,
        settings: StorageSettings,
        device: torch.device | str,
    ) -> Self:
        """Without values: only sizes and types are those of a quantised weight."""
        numel = shape[0] * shape[1]
        blocks, double = -(-numel // settings.block_size), settings.double_quant
        stored = NF4Weight(
            codes=torch.empty(-(-numel // 2), dtype=torch.uint8, device=device),
            absmax=torch.empty(
                blocks, dtype=torch.uint8 if double else torch.float32, device=device
            ),
            nested_absmax=_float32(-(-blocks // GROUP_SIZE), device=device) if double else None,
            offset=_float32((), device=device) if double else None,
            shape=shape,
            dtype=dtype,
            block_size=settings.block_size,
        )
        return cls(stored)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight, in ``dtype`` or the type it had."""
        return ops.dequantize(self.stored, dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Codes and scales."""
        stored = self.stored
        tensors = {"codes": stored.codes, "absmax": stored.absmax}
        if stored.nested_absmax is not None and stored.offset is not None:
            tensors |= {"nested_absmax": stored.nested_absmax, "offset": stored.offset}
        return tensors

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same weight over other tensors."""
        stored = self.stored
        return type(self)(
            NF4Weight(
                tensors["codes"],
                tensors["absmax"],
                tensors.get("nested_absmax"),
                tensors.get("offset"),
                stored.shape,
                stored.dtype,
                stored.block_size,
            )
        )

    def settings(self) -> dict[str, Any]:
        """Block size, and whether the scales are in 8 bits."""
        stored = self.stored
        return {"block_size": stored.block_size, "double_quant": stored.double_quantized}

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x Wᵀ + bias`` by the kernel that reads codes."""
        return ops.linear(x, self.stored, bias)

    def product_with_update(
        self, x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        """Both products by one kernel."""
        return ops.lora_linear(x, self.stored, bias, A, B, scaling)


def _float32(shape: int | tuple[()], device: torch.device | str) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)

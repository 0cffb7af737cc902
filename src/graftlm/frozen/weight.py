"""The contract of a frozen weight: a matrix that is stored, read and never trained.

    y = x Wᵀ + b                        `product`
    y = x Wᵀ + b + s · (x Aᵀ) Bᵀ        `product_with_update` (LoRA, arXiv 2106.09685)

A storage format is a subclass of `FrozenWeight`. Four methods are enough: `quantize`, `dequantize`,
`tensors` and `with_tensors`. The defaults of the others are correct but slow; a format with its own
kernels overrides the products. `graftlm.frozen.formats.register_format` registers the format under
its name. Only the folder of a format contains code that depends on the layout of its tensors.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from graftlm.errors import ConfigError
from graftlm.frozen.share import DenseSource, Share, ShareOfWeight, whole_first
from graftlm.kernels.low_rank import add_low_rank

if TYPE_CHECKING:
    from typing import Self

    from graftlm.frozen.checkpoint_format import CheckpointFormat

__all__ = ["FrozenWeight", "ScaledRows", "StorageSettings", "WeightSettings"]


class StorageSettings(Protocol):
    """The settings of a format; `graftlm.ModelConfig` has these attributes."""

    @property
    def block_size(self) -> int:
        """Weights that share one scale."""

    @property
    def double_quant(self) -> bool:
        """Whether the scales are stored in 8 bits."""


@dataclasses.dataclass(frozen=True)
class WeightSettings:
    """`StorageSettings` with the usual values."""

    block_size: int = 64
    double_quant: bool = True


class ScaledRows(NamedTuple):
    """A matrix as ``W = diag(row_scale) · matrix · diag(feature_scale)``.

    Attributes:
        matrix: (out, in), a floating-point type or int8.
        row_scale: (out,) float32; ``None`` for ones.
        feature_scale: (in,) float32; ``None`` for ones.
    """

    matrix: Tensor
    row_scale: Tensor | None = None
    feature_scale: Tensor | None = None


class FrozenWeight(abc.ABC):
    """A matrix W of shape (out, in) that is stored, read and never trained.

    An instance is immutable. It holds tensors and does not own a module; `FrozenLinear` does.

    Attributes:
        format: the name of the storage format, as `model.weight_format` and `register_format` take
            it.
        scales: names among `tensors()` that hold scales. A plan lists their bytes apart.
        checkpoint: how checkpoints in this format are read and written; ``None`` if they are not.
        shape: ``(out_features, in_features)``.
        dtype: the floating-point type the matrix had before it was stored.
    """

    format: ClassVar[str]
    scales: ClassVar[frozenset[str]] = frozenset()
    checkpoint: ClassVar[type[CheckpointFormat] | None] = None
    shape: tuple[int, int]
    dtype: torch.dtype

    @classmethod
    @abc.abstractmethod
    def quantize(cls, weight: Tensor, settings: StorageSettings) -> Self:
        """Store a dense weight, on the device it is on.

        Args:
            weight: (out, in), float32, bfloat16 or float16.
            settings: the user's settings; a format ignores those that it does not have.

        Raises:
            ConfigError: the format does not have these settings.
            ModelError: the weight cannot be stored, for example because it holds NaN.
        """

    @abc.abstractmethod
    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense matrix (out, in), in ``dtype`` or the type it had."""

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Every stored tensor by name, without copies.

        They become the buffers of a module, so a name may not be an attribute of `nn.Module`, nor
        ``weight`` or ``bias``.
        """

    @abc.abstractmethod
    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same matrix over other tensors: moved, copied, or read from a file."""

    @classmethod
    def quantize_share(
        cls,
        source: DenseSource,
        settings: StorageSettings,
        share: Share,
        device: torch.device,
    ) -> ShareOfWeight:
        """Store the part of a dense weight that one of several processes holds.

        The default reads and stores the whole matrix, one at a time, and keeps a part. A format
        whose blocks do not depend on each other reads less.

        Args:
            source: the matrix (out, in), not read yet.
            settings: as for `quantize`.
            share: which part; all processes call this for the same matrices in the same order.
            device: where the part lies.
        """
        return whole_first(cls.quantize(source.whole().to(device), settings), share)

    @classmethod
    def quantize_for(
        cls,
        weight: Tensor,
        settings: StorageSettings,
        gram: Tensor,
        dtype: torch.dtype,
        start: FrozenWeight | None = None,
    ) -> Self:
        """Store a weight so that its products with typical inputs change little.

        Args:
            weight: (out, in), float32.
            settings: as for `quantize`.
            gram: (in, in) float32, Xᵀ X of typical inputs X of the layer.
            dtype: the type of the weight, as `quantize` would find it.
            start: a stored weight to change as little as the aim needs; its scales are kept.

        Raises:
            ConfigError: the format has no such form.
        """
        raise ConfigError(
            f"weight format {cls.format!r} cannot be calibrated: {cls.__name__} does not define "
            "quantize_for"
        )

    def of_type(self, dtype: torch.dtype) -> Self:
        """The same stored matrix, as if the dense one had been of ``dtype``."""
        if dtype == self.dtype:
            return self
        other = copy.copy(self)
        other.dtype = dtype
        return other

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int],
        dtype: torch.dtype,
        settings: StorageSettings,
        device: torch.device | str,
    ) -> Self:
        """A stored matrix of this shape with arbitrary values, for planning.

        The default stores zeros. A format whose `quantize` reads values, as a check for NaN does,
        overrides this: a fake tensor has none.
        """
        return cls.quantize(torch.zeros(shape, dtype=dtype, device=device), settings)

    def settings(self) -> dict[str, Any]:
        """The settings of `quantize` that this matrix was stored with, by name."""
        return {}

    def scaled_rows(self, dtype: torch.dtype) -> ScaledRows:
        """The matrix as the loss without logits needs it; the default widens it to ``dtype``."""
        return ScaledRows(self.dequantize(dtype))

    def rows(self, ids: Tensor) -> Tensor:
        """Rows (..., in) of the matrix, looked up by ``ids`` (...), in float32."""
        return F.embedding(ids, self.dequantize(torch.float32))

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x Wᵀ + bias``; differentiable in ``x`` and ``bias``.

        The default dequantises W for the forward pass and again for the backward pass, and keeps
        no dense copy in between.

        Args:
            x: (..., in).
            bias: (out,) or ``None``.

        Returns:
            (..., out) in the type of ``x``.
        """
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if bias is None else (y + bias).to(x.dtype)

    def product_with_update(
        self, x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        """``x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ``; differentiable in all but W.

        Args:
            x: (..., in).
            bias: (out,) or ``None``.
            A: [rank, in].
            B: [out, rank].
            scaling: the factor of the update.

        Returns:
            (..., out) in the type of ``x``.
        """
        return add_low_rank(self.product(x, bias), x, A, B, scaling)

    @property
    def device(self) -> torch.device:
        """The device of the stored tensors."""
        return next(iter(self.tensors().values())).device

    @property
    def numel(self) -> int:
        """Number of weights (not of stored bytes)."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of storage, scales included."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def bits_per_parameter(self) -> float:
        """Storage in bits for each weight, scales included."""
        return 8 * self.nbytes / max(self.numel, 1)

    def to(self, device: torch.device | str) -> Self:
        """The same matrix on another device; the stored types do not change."""
        return self.with_tensors({name: t.to(device) for name, t in self.tensors().items()})


class _Product(torch.autograd.Function):
    """``x Wᵀ`` that keeps the stored weight for its backward pass, never a dense one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.dequantize(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy @ ctx.weight.dequantize(dy.dtype), None

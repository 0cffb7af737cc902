"""The weights of all experts of one projection: E matrices of one shape, each used for its rows.

    y_i = x_i W_e(i)ᵀ + b_e(i)                                     e(i): the expert of row i
    y_i = x_i W_e(i)ᵀ + b_e(i) + s · (x_i A_e(i)ᵀ) B_e(i)ᵀ         with an update (arXiv 2106.09685)

The rows of an expert lie together, in the order of the experts, so that one product a hit expert is
enough. An expert without rows is not read. At most one matrix is dense at a time, in the forward
and in the backward pass, because each product is that of a `FrozenWeight`.

    W  ExpertStack.matrix(e) [out, in]      rows of each expert  counts [E]
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graftlm._compat.torch_objects import buffers_of, parameters_of
from graftlm.frozen.dense import DenseWeight
from graftlm.frozen.keeps_types import KeepsTypes
from graftlm.frozen.share import Share, cut
from graftlm.frozen.weight import FrozenWeight, StorageSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["DenseExperts", "ExpertStack", "FrozenExperts"]


class ExpertStack(nn.Module, abc.ABC):
    """E frozen matrices [out, in].

    Attributes:
        shape: (E, out, in).
        transposed: whether the model's own parameter is [E, in, out].
    """

    shape: tuple[int, int, int]
    transposed: bool

    @abc.abstractmethod
    def matrix(self, expert: int) -> FrozenWeight:
        """The weight of one expert, over the module's tensors as they are now."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """The floating-point type of the dense weights."""

    def dense(self, expert: int, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight [out, in] of one expert."""
        return self.matrix(expert).dequantize(dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """All dense weights as the model's own parameter has them."""
        experts, rows, columns = self.shape
        shape = (experts, columns, rows) if self.transposed else self.shape
        device = self.matrix(0).device
        weight = torch.empty(shape, dtype=dtype or self.dtype, device=device)
        for expert, place in enumerate(weight):
            dense = self.dense(expert, dtype)
            place.copy_(dense.T if self.transposed else dense)
        return weight

    def forward(self, x: Tensor, counts: Sequence[int], bias: Tensor | None = None) -> Tensor:
        """Multiply each row by the matrix of its expert.

        Args:
            x: [N, in]; the first ``counts[0]`` rows are those of expert 0, and so on.
            counts: E numbers with the sum N.
            bias: [E, out] or ``None``.

        Returns:
            [N, out] in the type of ``x``.
        """
        return joined(
            [
                self.matrix(e).product(rows, None if bias is None else bias[e])
                for e, rows in hit(x, counts)
            ],
            x,
            self.shape[1],
        )

    def extra_repr(self) -> str:
        """What `print(model)` shows inside the brackets."""
        experts, rows, columns = self.shape
        return f"experts={experts}, in_features={columns}, out_features={rows}"


class DenseExperts(ExpertStack):
    """Experts in 16 or 32 bits.

    Args:
        weight: [E, out, in], or [E, in, out] if ``transposed``; the module holds this parameter.
        transposed: the layout of ``weight``.
    """

    def __init__(self, weight: nn.Parameter, transposed: bool) -> None:
        super().__init__()
        self.weight = weight
        experts, rows, columns = weight.shape
        self.shape = (experts, columns, rows) if transposed else (experts, rows, columns)
        self.transposed = transposed

    def matrix(self, expert: int) -> FrozenWeight:
        """A view of the weight of one expert."""
        weight = self.weight.detach()[expert]
        return DenseWeight(weight.T if self.transposed else weight)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameter."""
        return self.weight.dtype


class FrozenExperts(KeepsTypes, ExpertStack):
    """Experts in a weight format; each buffer holds one tensor of every expert: [E, …].

    Args:
        weights: the weight of each expert, all of one shape and stored with the same settings.
        transposed: whether the model's own parameter is [E, in, out].
    """

    def __init__(self, weights: Sequence[FrozenWeight], transposed: bool = False) -> None:
        super().__init__()
        first = weights[0]
        self.shape = (len(weights), *first.shape)
        self.transposed = transposed
        for name in first.tensors():
            stacked = torch.stack([weight.tensors()[name] for weight in weights])
            self.register_buffer(name, stacked)
        self._names = tuple(first.tensors())
        self._like = first
        self.moved(lambda tensor: tensor)

    @classmethod
    def of(
        cls,
        weight: Tensor,
        transposed: bool,
        format: type[FrozenWeight],
        settings: StorageSettings,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Store ``weight`` [E, out, in], or [E, in, out] if ``transposed``, expert by expert.

        ``dtype`` is the type that they are decoded to; by default that of ``weight``.
        """
        matrices = (one.T.contiguous() if transposed else one for one in weight.unbind())
        stored = (format.quantize(matrix, settings) for matrix in matrices)
        return cls([one.of_type(dtype or one.dtype) for one in stored], transposed)

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int],
        transposed: bool,
        format: type[FrozenWeight],
        dtype: torch.dtype,
        settings: StorageSettings,
        device: torch.device | str,
    ) -> Self:
        """Experts with arbitrary values, for planning; ``shape`` is (E, out, in)."""
        one = format.empty((shape[1], shape[2]), dtype, settings, device)
        return cls([one] * shape[0], transposed)

    def of_type(self, dtype: torch.dtype) -> Self:
        """These experts, which are now decoded to ``dtype``."""
        self._like = self._like.of_type(dtype)
        return self

    def matrix(self, expert: int) -> FrozenWeight:
        """The weight of one expert: views of the module's tensors."""
        held: dict[str, Any] = {**buffers_of(self), **parameters_of(self)}
        return self._like.with_tensors({name: held[name][expert] for name in self._names})

    def hold_as_parameters(self) -> None:
        """Make the tensors frozen parameters, which an engine can shard."""
        for name, tensor in list(self.named_buffers(recurse=False)):
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        like = self._like.tensors()  # views of the whole tensors
        self._like = self._like.with_tensors({name: t.to("meta") for name, t in like.items()})

    def leave_share(self, share: Share) -> dict[str, Tensor]:
        """The experts of one of several processes, a copy; the module keeps shapes without values.

        A process may get none.
        """
        parts = {}
        for name, tensor in list(self.named_buffers(recurse=False)):
            parts[name] = cut(tensor, share).clone()
            setattr(self, name, tensor.to("meta"))
        self._like = self.matrix(0)
        return parts

    def matrices(self) -> list[FrozenWeight]:
        """The weight of every expert."""
        return [self.matrix(expert) for expert in range(self.shape[0])]

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """The type that the weights had before they were stored."""
        return self._like.dtype

    @property
    def format(self) -> str:
        """The name of the storage format."""
        return self._like.format

    def settings(self) -> dict[str, Any]:
        """The settings that the weights were stored with."""
        return self._like.settings()

    def moved(self, move: Callable[[Tensor], Tensor]) -> None:
        """Release the tensors from before the move."""
        self._like = self.matrix(0)

    def extra_repr(self) -> str:
        """What `print(model)` shows inside the brackets."""
        return f"{super().extra_repr()}, format={self.format}"


def hit(x: Tensor, counts: Sequence[int]) -> list[tuple[int, Tensor]]:
    """The experts that have rows in ``x``, and their rows."""
    parts = torch.split_with_sizes(x, list(counts))
    return [(expert, rows) for expert, rows in enumerate(parts) if len(rows)]


def joined(parts: Sequence[Tensor], x: Tensor, width: int) -> Tensor:
    """The outputs of the hit experts, one below the other."""
    return torch.cat(list(parts)) if parts else x.new_zeros(0, width)

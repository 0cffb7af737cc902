"""The share of a frozen weight that one of several processes holds.

A stored tensor is cut along its first dimension into equal chunks, the last of which may be short
or empty: rank r of N holds rows [r c, (r + 1) c) with c = ceil(rows / N), as `torch.chunk` cuts.

    chunk           the bounds of a rank's rows
    ShareOfWeight   the stored form without values, and the rank's part of each of its tensors
    whole_first     how any format gets there: store the whole weight, keep a part of it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

if TYPE_CHECKING:
    import torch

    from graftlm.frozen.weight import FrozenWeight

__all__ = [
    "DenseSource",
    "Share",
    "ShareOfWeight",
    "chunk",
    "cut",
    "whole_first",
    "without_values",
]


class Share(Protocol):
    """Which process this is. All of them call `joined` in the same order."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    def joined(self, part: Tensor) -> Tensor:
        """The parts (n_r, …) of all processes, one below the other in the order of the ranks."""


class DenseSource(Protocol):
    """A dense matrix of which nothing has been read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)."""

    @property
    def dtype(self) -> torch.dtype:
        """The type in which it is read."""

    def elements(self, start: int, stop: int) -> Tensor:
        """The elements [start, stop) of the matrix, flattened by rows."""

    def whole(self) -> Tensor:
        """The matrix."""


class ShareOfWeight(NamedTuple):
    """What a rank holds of a stored matrix.

    Attributes:
        weight: the stored form, its tensors on the meta device; single numbers have values.
        parts: the rank's part of each tensor that has a first dimension.
    """

    weight: FrozenWeight
    parts: Mapping[str, Tensor]


def chunk(rows: int, share: Share) -> tuple[int, int]:
    """The first row of a rank, and the one after its last."""
    size = -(-rows // share.world_size)
    return min(share.rank * size, rows), min((share.rank + 1) * size, rows)


def cut(tensor: Tensor, share: Share) -> Tensor:
    """The rows of ``tensor`` that a rank holds, as a view."""
    start, stop = chunk(tensor.shape[0], share)
    return tensor[start:stop]


def whole_first(weight: FrozenWeight, share: Share, *, mapped: bool = False) -> ShareOfWeight:
    """A rank's part of a weight that is whole here.

    Args:
        weight: the weight.
        share: which part.
        mapped: whether its tensors lie in a file: the parts are then views of it. A view of a
            tensor in memory would keep the whole tensor there.
    """
    parts = {name: cut(tensor, share) for name, tensor in weight.tensors().items() if tensor.ndim}
    if not mapped:
        parts = {name: part.clone() for name, part in parts.items()}
    return ShareOfWeight(without_values(weight), parts)


def without_values(weight: FrozenWeight) -> FrozenWeight:
    """The same stored form on the meta device; single numbers keep their values."""
    tensors = weight.tensors()
    return weight.with_tensors({name: t.to("meta") if t.ndim else t for name, t in tensors.items()})

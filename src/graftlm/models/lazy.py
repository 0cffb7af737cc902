"""Tensors of a checkpoint that transformers' loader reads when it indexes them.

LazyTensor   a substitute for a slice of a safetensors file
Stored       what it may read: a weight that is already in its format
Unread       what it may pass on, for one of several processes: see `shares.py`
Abort        how an error leaves the loader, which logs others and continues
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.weight import FrozenWeight
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.shares import Shares, Unread
from graftlm.system.placement import Placement
from graftlm.system.processes import joined_processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Abort", "LazyTensor", "Stored", "copied_tensors", "loaded_tensors", "unread_tensors"]


class Abort(BaseException):
    """Carries an error through transformers' loader, which would otherwise log it and continue."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Stored:
    """A weight that is already in its format, or the experts of a layer.

    The loader may move it but not change its types.
    """

    def __init__(self, weight: FrozenWeight | FrozenExperts) -> None:
        self.weight = weight

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Stored:
        """The same weight on ``device``; ``dtype`` is ignored."""
        return self if device is None else Stored(self.weight.to(device))

    @property
    def matrix(self) -> FrozenWeight:
        """The weight of a linear layer."""
        assert not isinstance(self.weight, FrozenExperts)
        return self.weight


class LazyTensor:
    """A substitute for a safetensors slice in transformers' loader; it is read when indexed.

    Args:
        read: reads the tensor.
        stored: whether `read` returns a `Stored`.
    """

    def __init__(self, read: Callable[[], Tensor | Stored | Unread], stored: bool = False) -> None:
        self._read = read
        self.stored = stored

    def __getitem__(self, _: Any) -> Tensor | Stored:
        try:
            return self._read()  # type: ignore[return-value]  # only the loader is given unread ones
        except Exception as error:
            raise Abort(error) from error


def copied_tensors(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """The checkpoint by name; each tensor is copied from its file when it is indexed."""
    return {name: LazyTensor(functools.partial(checkpoint.read, name)) for name in checkpoint}


def loaded_tensors(
    checkpoint: Checkpoint, format: type[FrozenWeight] | None, device: torch.device
) -> dict[str, LazyTensor]:
    """The dense tensors of a checkpoint as a run reads them.

    Where several processes of a machine hold the same dense model in its memory, the tensors are
    mapped, so that one copy serves all. What is stored in a format or moved to an accelerator is
    read once and dropped, so it is copied.
    """
    here = joined_processes()
    if here.local_world_size == 1 or format is not None or not Placement.on(device).runs_on_cpu:
        return copied_tensors(checkpoint)
    return {name: LazyTensor(functools.partial(checkpoint.map, name)) for name in checkpoint}


def unread_tensors(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    tensors: Mapping[str, LazyTensor],
    shares: Shares,
) -> dict[str, LazyTensor]:
    """Those of ``tensors`` that are one parameter each, read only in part if `Shares` wants that.

    Args:
        model: on the meta device.
        checkpoint: the files.
        tensors: the checkpoint by name.
        shares: says which parameters are wanted in parts, once the loader has begun.
    """
    from graftlm.models.shard_writer import parameter_names

    places, joined = parameter_names(model, tensors)

    def reader(key: str) -> Callable[[], Tensor | Unread]:
        def read() -> Tensor | Unread:
            if places[key] in shares.wanted:
                return Unread(checkpoint, key, checkpoint[key].dtype)
            return checkpoint.read(key)

        return read

    return {
        key: LazyTensor(reader(key))
        for key, tensor in tensors.items()
        if key not in joined and not tensor.stored
    }

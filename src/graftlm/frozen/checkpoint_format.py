"""The contract of a storage format on disk: which tensors of a checkpoint form one stored weight.

A weight format names its disk format in `FrozenWeight.checkpoint`. Loading asks every registered
format whether it `recognises` the `quantization_config` of a config.json. The format that does
opens the weights.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from graftlm.frozen.weight import FrozenWeight, StorageSettings

__all__ = ["CheckpointFormat"]


class CheckpointFormat(abc.ABC):
    """Reads and writes the tensors of stored weights under the names of a checkpoint.

    A *prefix* is the name of a module, such as ``model.layers.0.self_attn.q_proj``.

    Attributes:
        title: the name of the format in messages, such as ``bitsandbytes NF4``.
    """

    title: ClassVar[str]

    @classmethod
    @abc.abstractmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """Whether this `quantization_config` describes weights in this format."""

    @classmethod
    @abc.abstractmethod
    def stored_weights(cls, names: Iterable[str]) -> dict[str, list[str]]:
        """The prefix of each weight that is in this format, and the names of its tensors.

        Args:
            names: every tensor name of the checkpoint.
        """

    @classmethod
    @abc.abstractmethod
    def open(cls, tensors: Mapping[str, Tensor], prefix: str) -> FrozenWeight:
        """The weight of the module ``prefix``; its tensors are views of the ones given.

        Raises:
            ArtifactError: a tensor is missing, corrupt, or of another format.
        """

    @classmethod
    @abc.abstractmethod
    def write(cls, weight: FrozenWeight, prefix: str) -> dict[str, Tensor]:
        """The tensors to store for the module ``prefix``, by name; they are not copied."""

    @classmethod
    @abc.abstractmethod
    def config(
        cls, settings: StorageSettings, dtype: torch.dtype, kept: list[str]
    ) -> dict[str, Any]:
        """The `quantization_config` of a folder that is written in this format.

        Args:
            settings: how its weights were stored.
            dtype: the type that the model computes in.
            kept: the linear layers that are not in the format.
        """

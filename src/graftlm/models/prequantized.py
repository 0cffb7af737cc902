"""Checkpoints that are in 4 bits already, in the format of bitsandbytes: opened, not converted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from graftlm.errors import ArtifactError, ModelError
from graftlm.frozen.nf4.bitsandbytes_format import from_bitsandbytes
from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.streaming import LazyTensor, Stored

__all__ = ["is_nf4", "mapped_tensors"]

STATE = ".quant_state.bitsandbytes__"


def is_nf4(settings: Any, name: str) -> bool:
    """Whether `quantization_config` of a config.json says NF4; ``None`` says 16 or 32 bits.

    Raises:
        ModelError: the model is quantised in a way graftlm does not read.
    """
    if settings is None:
        return False
    if not isinstance(settings, Mapping):
        settings = settings.to_dict()
    method = settings.get("quant_method")
    four_bit = bool(settings.get("load_in_4bit") or settings.get("_load_in_4bit"))
    kind = settings.get("bnb_4bit_quant_type", "fp4")
    if method == "bitsandbytes" and four_bit and kind == "nf4":
        return True
    found = f"{method} {kind if four_bit else 'int8'}" if method == "bitsandbytes" else str(method)
    raise ModelError(
        f"{name} is quantised as {found}; graftlm reads bitsandbytes NF4, and 16- or 32-bit "
        "weights. Start from the original model: graftlm quantises it while loading."
    )


def mapped_tensors(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """The checkpoint by parameter name, each 4-bit weight under its one name ``….weight``.

    Nothing is read here; codes and scales will be views of the mapped file.
    """
    quantized = {name.partition(STATE)[0] for name in checkpoint if STATE in name}
    return {
        name: LazyTensor(_opener(checkpoint, name, name in quantized))
        for name in checkpoint
        if not _is_part(name, quantized)
    }


def _is_part(name: str, quantized: set[str]) -> bool:
    """Whether ``name`` belongs to a 4-bit weight, as ``a.weight.quant_map`` to ``a.weight``."""
    module, dot, _ = name.rpartition(".weight.")
    return bool(dot) and f"{module}.weight" in quantized


def _opener(checkpoint: Checkpoint, name: str, quantized: bool) -> Callable[[], Tensor | Stored]:
    def open_plain() -> Tensor:
        return checkpoint.map(name)

    def open_nf4() -> Stored:
        return Stored(_open_nf4(checkpoint, name))

    return open_nf4 if quantized else open_plain


def _open_nf4(checkpoint: Checkpoint, name: str) -> NF4Weight:
    try:
        return from_bitsandbytes(_MappedView(checkpoint), name.removesuffix(".weight"))
    except ArtifactError as error:
        raise ModelError(f"{checkpoint[name].file}: {error}") from error


class _MappedView(Mapping[str, Tensor]):
    """A checkpoint as a mapping of mapped tensors."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getitem__(self, name: str) -> Tensor:
        return self._checkpoint.map(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint)

    def __len__(self) -> int:
        return len(self._checkpoint)

"""Checkpoints whose weights are already in a storage format; they are opened without conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from graftlm.errors import ArtifactError, ModelError
from graftlm.frozen.checkpoint_format import CheckpointFormat
from graftlm.frozen.formats import format_named, formats
from graftlm.models.experts import ExpertWeight
from graftlm.models.lazy import LazyTensor, Stored
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.stored_experts import expert_prefixes, open_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["StoredAs", "mapped_tensors", "stored_as", "take_quantization"]

StoredAs = type[CheckpointFormat]


def stored_as(settings: Any, name: str) -> tuple[str, StoredAs] | None:
    """The format that `quantization_config` of a config.json describes.

    Args:
        settings: the `quantization_config`; ``None`` means dense weights.
        name: the model, for the message.

    Returns:
        The name of the weight format and its reader; ``None`` for dense weights.

    Raises:
        ModelError: no registered format reads this.
    """
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        settings = settings.to_dict()
    readable = {
        one: reader for one in formats() if (reader := format_named(one).checkpoint) is not None
    }
    for one, reader in readable.items():
        if reader.recognises(settings):
            return one, reader
    known = ", ".join(reader.title for reader in readable.values())
    raise ModelError(
        f"{name} is quantised as {_said(settings)}; graftlm reads {known}, and 16- or 32-bit "
        "weights. Start from the original model: graftlm quantises it while loading."
    )


def take_quantization(config: PretrainedConfig, name: str) -> StoredAs | None:
    """Remove `quantization_config`, which transformers would act on; return its reader.

    Raises:
        ModelError: the model is quantised in a way graftlm does not read.
    """
    settings = None
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        settings = part.__dict__.pop("quantization_config", None) or settings
    found = stored_as(settings, name)
    return None if found is None else found[1]


def _said(settings: Mapping[str, Any]) -> str:
    """A short name for a `quantization_config`, for messages."""
    method = str(settings.get("quant_method"))
    if method != "bitsandbytes":
        return method
    four_bit = settings.get("load_in_4bit") or settings.get("_load_in_4bit")
    return f"{method} {settings.get('bnb_4bit_quant_type', 'fp4') if four_bit else 'int8'}"


def mapped_tensors(
    checkpoint: Checkpoint, reader: StoredAs, fused: Mapping[str, ExpertWeight]
) -> dict[str, LazyTensor]:
    """The checkpoint by parameter name, each stored weight under the single name ``….weight``.

    This function reads no data; the tensors of a stored weight become views of the mapped file.
    Those of fused experts are copied, because they are held together.

    Args:
        checkpoint: the files.
        reader: the format of the stored weights.
        fused: the fused experts of the model.
    """
    prefix_of = {
        name: prefix
        for prefix, names in reader.stored_weights(checkpoint).items()
        for name in names
    }
    tensors: dict[str, LazyTensor] = {}
    experts = expert_prefixes(prefix_of.values(), fused)
    of_experts = {prefix for prefixes in experts.values() for prefix in prefixes.values()}
    for name, prefixes in experts.items():
        tensors[name] = LazyTensor(
            _experts_opener(checkpoint, reader, prefixes, fused[name]), stored=True
        )
    for name in checkpoint:
        if name in experts or prefix_of.get(name) in of_experts:
            continue
        if name in prefix_of:
            weight = _opener(checkpoint, reader, prefix_of[name], checkpoint[name].file)
            tensors.setdefault(f"{prefix_of[name]}.weight", LazyTensor(weight, stored=True))
        else:
            tensors[name] = LazyTensor(_mapped(checkpoint, name))
    return tensors


def _mapped(checkpoint: Checkpoint, name: str) -> Callable[[], Tensor]:
    return lambda: checkpoint.map(name)


def _opener(
    checkpoint: Checkpoint, reader: StoredAs, prefix: str, file: Path
) -> Callable[[], Stored]:
    def open_weight() -> Stored:
        try:
            return Stored(reader.open(_MappedView(checkpoint), prefix))
        except ArtifactError as error:
            raise ModelError(f"{file}: {error}") from error

    return open_weight


def _experts_opener(
    checkpoint: Checkpoint, reader: StoredAs, prefixes: Mapping[int, str], weight: ExpertWeight
) -> Callable[[], Stored]:
    def open_weights() -> Stored:
        view, shape = _MappedView(checkpoint), weight.shape
        try:
            return Stored(open_experts(view, prefixes, shape, weight.transposed, reader))
        except ArtifactError as error:
            raise ModelError(f"{checkpoint.folder}: {error}") from error

    return open_weights


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

"""Shared code of commands that rewrite a model folder with other weights, tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from graftlm._compat.loader import WeightConverter, WeightRenaming, rename_source_key
from graftlm.errors import ModelError
from graftlm.files import write_json
from graftlm.models.safetensors_writer import SafetensorsWriter
from graftlm.models.saved_tokenizer import TOKENIZER_FILES, name_for_both_releases

__all__ = [
    "ShardWriter",
    "copy_beside",
    "copy_companions",
    "parameter_names",
    "require_every_weight",
]

SHARD_BYTES = 1_000_000_000
CHECKED_AT_ONCE = 1 << 22
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BESIDE = (
    *("LICENSE*", "NOTICE*", "*.py"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
"""Licence, code, and what prepares images, video and sound."""


def parameter_names(
    model: PreTrainedModel, keys: Iterable[str]
) -> tuple[dict[str, str], frozenset[str]]:
    """The parameter of ``model`` that each checkpoint key fills, as transformers loads it.

    Keys may lack the base model's prefix, or have names from an older release.

    Returns:
        ``{key: parameter}``, and the keys that fill their parameter together with others.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    parameters = model.state_dict()
    names, shared = {}, set()
    for key in sorted(keys):
        name, converter = rename_source_key(
            key, renamings, converters, model.base_model_prefix, parameters
        )
        names[key] = key if name not in parameters and key in parameters else name
        if converter is not None:
            shared.add(key)
    return names, frozenset(shared)


def require_every_weight(model: PreTrainedModel, folder: Path, places: Iterable[str]) -> None:
    """Check that a checkpoint fills every weight of ``model``; tied ones once.

    Raises:
        ModelError: the message names what is missing.
    """
    filled = {id(tensor) for name, tensor in _weights(model) if name in set(places)}
    missing = [name for name, tensor in _weights(model) if id(tensor) not in filled]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} weights of its model, such as {missing[0]}. The "
            "download may be incomplete; fetch it again."
        )


def _weights(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    return list(model.named_parameters(remove_duplicate=False))


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template, generation settings and processors; not config.json."""
    _copy(source, folder, ("generation_config.json", *TOKENIZER_FILES))
    name_for_both_releases(folder)
    copy_beside(source, folder)


def copy_beside(source: Path, folder: Path) -> None:
    """Copy the licence, the code and the processors that lie beside a model."""
    _copy(source, folder, BESIDE)


def _copy(source: Path, folder: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


class ShardWriter:
    """Writes tensors to ``folder`` in shards as they come, named as transformers names them.

    Args:
        folder: an existing folder, best a temporary one.
        max_bytes: the maximum size of a shard; a gigabyte by default.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self._folder, self._max_bytes = folder, max_bytes or SHARD_BYTES
        self._shards: list[SafetensorsWriter] = []
        self.total_bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the folder; after an error let go of the open shard."""
        if kind is None:
            self._close()
        elif self._shards:
            self._shards[-1].discard()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor.

        Raises:
            ModelError: it holds NaN or infinite numbers, so the model would be worthless.
        """
        if tensor.dtype in FLOATS and not _is_finite(tensor):
            raise ModelError(
                f"{name} would hold NaN or infinite numbers. Check the weights that it is made of: "
                "the base model's, and the adapter's with its scaling."
            )
        if not self._shards or not self._fits(name, tensor):
            self._next()
        self._shards[-1].add(name, tensor)
        self.total_bytes += tensor.nbytes

    def _fits(self, name: str, tensor: Tensor) -> bool:
        shard = self._shards[-1]
        return shard.nbytes + tensor.nbytes <= self._max_bytes and shard.has_room(name, tensor)

    def _next(self) -> None:
        if self._shards:
            self._shards[-1].close()
        self._shards.append(SafetensorsWriter(self._path(len(self._shards))))

    def _close(self) -> None:
        """Write the last shard, give the files their final names, and write the index."""
        if not self._shards:
            self._next()
        self._shards[-1].close()
        count = len(self._shards)
        if count == 1:
            self._path(0).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._path(number).rename(self._folder / final)
            weight_map |= dict.fromkeys(shard.names, final)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        write_json(self._folder / "model.safetensors.index.json", index)

    def _path(self, number: int) -> Path:
        return self._folder / f"shard-{number}.safetensors"


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; looked at in parts, because the answers take memory too."""
    parts = torch.split(tensor.reshape(-1), CHECKED_AT_ONCE)
    return all(bool(torch.isfinite(part).all()) for part in parts)

"""Writing a model's weights as a stream: no more than one shard is held in memory."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from graftlm.errors import ResourceError
from graftlm.files import write_json

__all__ = ["ShardWriter"]


class ShardWriter:
    """Collects tensors and writes them to ``folder`` in shards, named as transformers names them.

    Args:
        folder: an existing folder, best a temporary one.
        max_bytes: a shard is written before it would grow beyond this.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._tensors: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._nbytes = 0
        self.total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor."""
        if self._tensors and self._nbytes + tensor.nbytes > self._max_bytes:
            self._flush()
        self._tensors[name] = tensor.contiguous()
        self._nbytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left, give the files their final names, and write the index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._path(0).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._path(number).rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        write_json(self._folder / "model.safetensors.index.json", index)

    def _flush(self) -> None:
        path = self._path(len(self._shards))
        try:
            safetensors.torch.save_file(self._tensors, path, {"format": "pt"})
        except safetensors.SafetensorError as error:  # how safetensors reports a full disk
            raise ResourceError(f"cannot write {path.parent}: {error}") from error
        self._shards.append(list(self._tensors))
        self._tensors, self._nbytes = {}, 0

    def _path(self, number: int) -> Path:
        return self._folder / f"shard-{number}.safetensors"

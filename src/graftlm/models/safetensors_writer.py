"""Writes one safetensors file a tensor at a time, so that no more than one is in memory.

    8 bytes       length of the header, little-endian
    header        JSON name → {dtype, shape, data_offsets}, padded with spaces
    tensors       their bytes, without gaps

`safetensors.torch.save_file` needs all tensors of a file at once, which for files of a usual size
is a gigabyte. Here room for the header is left free and filled at the end. A reader that maps the
file needs each tensor at a multiple of the size of its elements: a tensor whose bytes are no
multiple of 8 would shift the next ones, so these few (odd vectors, the description of a weight
format) are kept, and written last, in order of their element size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.models.safetensors_file import DTYPES

__all__ = ["SafetensorsWriter"]

DATA_START = 1 << 18
"""Room for the header: about 1,400 tensors."""
ALIGNMENT = 8
METADATA = {"__metadata__": {"format": "pt"}}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_NUMBERS = 120
"""Bytes of a header's entry besides its name and shape, at most."""


class SafetensorsWriter:
    """One file in the making; `close` makes it whole.

    Args:
        file: the file to write; a reader refuses it until it is closed.
    """

    def __init__(self, file: Path) -> None:
        self._stream = file.open("wb")
        self._stream.seek(DATA_START)
        self._header: dict[str, Any] = {}
        self._later: dict[str, Tensor] = {}
        self._room = DATA_START - 8 - len(json.dumps(METADATA))
        self._end = 0
        self.nbytes = 0

    @property
    def names(self) -> list[str]:
        """The tensors so far."""
        return [*self._header, *self._later]

    def has_room(self, name: str, tensor: Tensor) -> bool:
        """Whether the header has room for one more tensor."""
        return self._room >= _entry_bytes(name, tensor)

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor; `has_room` must hold.

        Raises:
            ModelError: safetensors has no name for its type, or the name was given before, or it
                is longer than the header.
        """
        if name in self._header or name in self._later or not self.has_room(name, tensor):
            raise ModelError(f"{name[:200]} comes twice, or is longer than a header may be")
        if tensor.dtype not in NAMES:
            raise ModelError(f"{name} is of {tensor.dtype}, which safetensors cannot hold")
        self._room -= _entry_bytes(name, tensor)
        self.nbytes += tensor.nbytes
        if tensor.nbytes % ALIGNMENT:
            self._later[name] = tensor
        else:
            self._write(name, tensor)

    def close(self) -> None:
        """Write what was kept, and the header."""
        with self._stream:
            for name, tensor in sorted(self._later.items(), key=lambda item: -item[1].itemsize):
                self._write(name, tensor)
            self._later.clear()
            text = json.dumps(METADATA | self._header).encode().ljust(DATA_START - 8)
            self._stream.seek(0)
            self._stream.write(len(text).to_bytes(8, "little") + text)

    def discard(self) -> None:
        """Let go of the file as it is."""
        self._stream.close()

    def _write(self, name: str, tensor: Tensor) -> None:
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        self._stream.write(flat.numpy().data)
        begin, self._end = self._end, self._end + tensor.nbytes
        self._header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, self._end],
        }


def _entry_bytes(name: str, tensor: Tensor) -> int:
    return len(json.dumps(name)) + len(json.dumps(list(tensor.shape))) + LONGEST_NUMBERS

"""The header of a GGUF file: what it claims to hold, checked against what it has.

    "GGUF"  version  tensors  keys     then `keys` times: name, type, value
                                       then `tensors` times: name, shape, type, offset

A reader that believes the header allocates what it says: a few changed bytes can ask for 10^15
strings or a million layers. Here each count is first compared with the bytes that are left.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import re
import struct
from pathlib import Path

from graftlm.errors import ModelError, printable

__all__ = ["GGUFHeader", "read_header"]

_VERSIONS = (2, 3)
_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""The types of a value, as `struct` names them."""
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file holds.

    Attributes:
        numbers: the values that are one number, by their key.
        tensors: the elements of each tensor, by its name.
    """

    numbers: dict[str, float]
    tensors: dict[str, int]


def read_header(file: Path) -> GGUFHeader:
    """Read and check the header of ``file``.

    Raises:
        ModelError: it is no GGUF file, is cut off, or claims more than it can hold.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{file} is not a GGUF file: it does not start with the letters GGUF.")
        try:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header = _Reader(content).header()
        except (_WrongError, struct.error, UnicodeDecodeError) as error:
            raise ModelError(
                f"{file} is corrupt or cut off: {error}. Fetch the file again."
            ) from error
    blocks = {int(found[1]) for name in header.tensors if (found := _BLOCK.match(name))}
    for key, value in header.numbers.items():
        if key.endswith(".block_count") and value > len(blocks):
            raise ModelError(
                f"{file} says {key} = {printable(f'{value:.0f}')}, but holds the tensors of "
                f"{len(blocks)} blocks. The file is corrupt or incomplete; fetch it again."
            )
    return header


class _WrongError(Exception):
    """The header claims what cannot be."""


class _Reader:
    """Reads a header from its bytes."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, 4

    def header(self) -> GGUFHeader:
        version = self._number("I")
        if version not in _VERSIONS:
            raise _WrongError(f"its version is {version}; expected one of {_VERSIONS}")
        tensors, keys = self._count(24), self._count(13)
        numbers: dict[str, float] = {}
        for _ in range(keys):
            name, kind = self._text(), self._number("I")
            if kind in _FORMATS:
                numbers[name] = self._number(_FORMATS[int(kind)])
            else:
                self._skip(int(kind))
        sizes = {}
        for _ in range(tensors):
            name, dimensions = self._text(), int(self._number("I"))
            if dimensions > _MOST_DIMENSIONS:
                raise _WrongError(f"tensor {name[:80]!r} has {dimensions} dimensions")
            shape = [int(self._number("Q")) for _ in range(dimensions)]
            self._number("I")
            offset = self._number("Q")
            sizes[name] = math.prod(shape)
            # The densest type of llama.cpp stores 1.5 bits a weight.
            if offset >= len(self._content) or sizes[name] > 8 * len(self._content):
                raise _WrongError(f"tensor {name[:80]!r} of shape {shape} is larger than the file")
        return GGUFHeader(numbers, sizes)

    def _skip(self, kind: int) -> None:
        if kind == _STRING:
            self._forward(self._count(1))
            return
        if kind != _ARRAY:
            raise _WrongError(f"a value has the unknown type {kind}")
        of = int(self._number("I"))
        if of in _FORMATS:
            size = struct.calcsize(_FORMATS[of])
            self._forward(self._count(size) * size)
        elif of == _STRING:
            for _ in range(self._count(8)):
                self._forward(self._count(1))
        else:
            raise _WrongError(f"an array has elements of the unknown type {of}")

    def _count(self, least: int) -> int:
        """A count of things of at least ``least`` bytes each."""
        count = int(self._number("Q"))
        if count * least > len(self._content) - self._at:
            raise _WrongError(f"it claims {count:,} values where {self._left:,} bytes are left")
        return count

    def _number(self, kind: str) -> float:
        (value,) = struct.unpack_from(f"<{kind}", self._content, self._at)
        self._at += struct.calcsize(kind)
        return value  # type: ignore[no-any-return]

    def _text(self) -> str:
        start = self._at + 8
        self._forward(self._count(1))
        return self._content[start : self._at].decode("utf-8")

    @property
    def _left(self) -> int:
        return len(self._content) - self._at

    def _forward(self, count: int) -> None:
        if count > self._left:
            raise _WrongError("it ends in the middle of a value")
        self._at += count

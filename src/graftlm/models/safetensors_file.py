"""Reading safetensors one tensor at a time, by copy or memory-mapped.

A file is 8 bytes (little-endian header length), a JSON header `name → {dtype, shape, data_offsets}`
and the tensors' bytes. The whole header is checked before the first tensor is read, so that a
truncated download is refused at once, with the name of the file.

This module does not use `safetensors.safe_open`, because that maps the whole file: each page stays
in the process's resident memory after it is read, until the system reclaims it. Quantising a
checkpoint would then peak at the size of the checkpoint. `Checkpoint.read` copies one tensor
instead. `Checkpoint.map` is a mapped view, for checkpoints that are used unchanged.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graftlm.errors import ModelError

__all__ = ["Checkpoint", "StoredTensor", "read_header", "read_tensor"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 100_000_000
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


class StoredTensor(NamedTuple):
    """The location of one tensor: its file, type, shape, and bytes ``[start, start + nbytes)``."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Checkpoint(Mapping[str, StoredTensor]):
    """All tensors of a model folder, one file or sharded: `name → StoredTensor`.

    Args:
        folder: the folder.
        single: the name of the file, if there is only one.

    Raises:
        ModelError: there is no safetensors checkpoint, or it is corrupt or incomplete.
    """

    def __init__(self, folder: Path, single: str = SINGLE_NAME) -> None:
        self.folder = folder
        self._maps: dict[Path, mmap.mmap] = {}
        self._tensors: dict[str, StoredTensor] = {}
        if (folder / single).exists():
            self._tensors = read_header(folder / single)
        elif (folder / INDEX_NAME).exists():
            self._read_shards(folder / INDEX_NAME)
        else:
            raise ModelError(_no_checkpoint(folder))

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, name: str) -> Tensor:
        """Copy one tensor into fresh memory."""
        return read_tensor(self[name], name)

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        """Copy the elements [start, stop) of a tensor, flattened by rows, into fresh memory."""
        whole = self[name]
        offset = whole.start + start * whole.dtype.itemsize
        return read_tensor(StoredTensor(whole.file, whole.dtype, (stop - start,), offset), name)

    def map(self, name: str) -> Tensor:
        """A view of one tensor in the file: no copy, pages are read when touched and evictable.

        The mapping is private: writing to the tensor copies the page and never changes the file.
        """
        stored = self[name]
        if stored.nbytes == 0 or stored.start % stored.dtype.itemsize:
            return self.read(name)
        if stored.file not in self._maps:
            with stored.file.open("rb") as file:
                self._maps[stored.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        count = math.prod(stored.shape)
        flat = torch.frombuffer(
            self._maps[stored.file], dtype=stored.dtype, count=count, offset=stored.start
        )
        return flat.view(stored.shape)

    def forget(self) -> None:
        """Release the mapped pages from memory; the next access reads them again."""
        for mapped in self._maps.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type with the most bytes; float32 if there is none."""
        size: dict[torch.dtype, int] = {}
        for stored in self.values():
            if stored.dtype.is_floating_point:
                size[stored.dtype] = size.get(stored.dtype, 0) + stored.nbytes
        return max(size, key=lambda dtype: size[dtype], default=torch.float32)

    def _read_shards(self, index: Path) -> None:
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted({str(shard) for shard in weight_map.values()})
            if not shards:
                raise ValueError("it names no file")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{index} is not a valid safetensors index: {error!r}. "
                "Fetch or write the model folder again."
            ) from error
        for shard in shards:
            if Path(shard).name != shard:
                raise ModelError(f"{index} names the shard {shard!r}, which is outside its folder.")
            if not (index.parent / shard).is_file():
                raise ModelError(
                    f"{index.parent} lacks {shard}, which its index names. "
                    "The download may be incomplete; fetch the file again."
                )
            tensors = read_header(index.parent / shard)
            if twice := sorted(tensors.keys() & self._tensors.keys()):
                raise ModelError(
                    f"{index.parent} holds tensor {twice[0]!r} twice, in {shard} and in "
                    f"{self._tensors[twice[0]].file.name}, so it is not known which one counts "
                    f"({len(twice)} in all). Fetch or write the model folder again."
                )
            self._tensors |= tensors
        if lost := sorted(set(weight_map) - set(self._tensors)):
            raise ModelError(
                f"{index} promises tensor {lost[0]!r}, but {weight_map[lost[0]]} does not hold it "
                f"({len(lost)} missing in all). Fetch or write the model folder again."
            )


def read_tensor(stored: StoredTensor, name: str = "") -> Tensor:
    """Copy one tensor into fresh memory.

    Raises:
        ModelError: the file is shorter than its header says.
    """
    tensor = torch.empty(stored.shape, dtype=stored.dtype)
    view = tensor.reshape(-1).view(torch.uint8).numpy().data
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.start)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise _corrupt(stored.file, f"it ends inside tensor {name!r}")
            done += count
    return tensor


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Parse and check the header of one safetensors file.

    Raises:
        ModelError: the message names the file and, if there is one, the tensor.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _corrupt(file, f"its header claims {length} bytes, the file has {size}")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise _corrupt(file, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _corrupt(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _entry(file, name, value, 8 + length, size) for name, value in header.items()}
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start < end and tensor.nbytes:
            raise _corrupt(file, f"tensors {before!r} and {name!r} overlap")
        end, before = max(end, tensor.start + tensor.nbytes), name
    return tensors


def _entry(file: Path, name: str, value: Any, data_start: int, file_size: int) -> StoredTensor:
    try:
        kind, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        whole = isinstance(kind, str) and all(
            type(number) is int and number >= 0 for number in (*shape, begin, end)
        )
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise _corrupt(file, f"tensor {name!r} lacks a valid dtype, shape or data_offsets")
    if kind not in DTYPES:
        raise ModelError(f"{file}: tensor {name!r} has the type {kind!r}, which is not supported.")
    stored = StoredTensor(file, DTYPES[kind], shape, data_start + begin)
    if end - begin != stored.nbytes:
        raise _corrupt(
            file,
            f"tensor {name!r} {list(shape)} {kind} needs {stored.nbytes} bytes, has {end - begin}",
        )
    if data_start + end > file_size:
        raise _corrupt(
            file, f"tensor {name!r} ends at byte {data_start + end}, the file at {file_size}"
        )
    return stored


def _corrupt(file: Path, why: str) -> ModelError:
    return ModelError(
        f"{file} is not a valid safetensors file: {why}. "
        "The download may be incomplete; fetch the file again."
    )


def _no_checkpoint(folder: Path) -> str:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth"})
    if pickles:
        return (
            f"{folder} holds its weights only as {pickles[0]}. Such files can run code when they "
            "are opened, so graftlm reads safetensors only. If you trust the source, convert once: "
            f'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\" "
            "and copy the tokenizer files over."
        )
    return (
        f"{folder} holds no weights: expected {SINGLE_NAME} or {INDEX_NAME}. "
        "Point to a folder written by save_pretrained."
    )

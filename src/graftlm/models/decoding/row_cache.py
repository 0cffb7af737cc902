"""The keys and values of the rows that are being continued, in memory that grows by doubling.

    keys, values    (rows, heads, columns, features) in each layer

All rows end at the same column, so that each step writes one column. A row that joins later, or is
shorter, begins at a later column; what stands before its beginning is masked. transformers' own
cache copies everything it holds at every step; this one writes only what is new.

A processor without bfloat16 instructions multiplies in float32. There the cache holds float32, so
that a step does not widen all of it again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from graftlm.kernels.lora_linear import factor_type
from graftlm.system import fast_bfloat16

__all__ = ["KeysAndValues", "RowCache"]

KeysAndValues = list[tuple[Tensor, Tensor]]
"""Of one row, by layer: (heads, tokens, features) each."""
FIRST = 64
"""Columns of a new cache."""


class _Layer(CacheLayerMixin):
    """One layer's keys and values; the columns after ``length`` are free."""

    is_sliding = False

    def __init__(self, wide: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length, self.wide = 0, wide

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for the first rows."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            _room(tensor, tensor.shape[0], max(FIRST, tensor.shape[2]), held_in(tensor, self.wide))
            for tensor in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new columns; the keys and values of all columns."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        count = key_states.shape[2]
        end = self.length + count
        if end > self.keys.shape[2]:
            self.keys, self.values = (_grown(t, end, self.length) for t in (self.keys, self.values))
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        keys, values = self.keys[:, :, :end], self.values[:, :, :end]
        if count > 1:  # a prompt goes through kernels that want one type
            return keys.to(key_states.dtype), values.to(value_states.dtype)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the next step sees, and the first of them."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Columns so far."""
        return self.length

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1


class RowCache(Cache):
    """The cache of all rows of a batch.

    Args:
        wide: whether 16 bits may be held as float32, which the model's attention must take.
    """

    def __init__(self, wide: bool = False) -> None:
        self._layer = functools.partial(_Layer, wide)
        super().__init__(layer_class_to_replicate=self._layer)  # type: ignore[arg-type]

    @property
    def length(self) -> int:
        """Columns so far."""
        return max((layer.length for layer in self._filled()), default=0)

    def keep(self, rows: Sequence[int], first: int) -> None:
        """Keep some rows, in this order, and drop the columns before ``first``."""
        index = torch.tensor(list(rows))
        for layer in self._filled():
            layer.keys, layer.values = (
                _moved(t[index.to(t.device), :, first : layer.length], 0)
                for t in (layer.keys, layer.values)
            )
            layer.length -= first

    def add(self, rows: Sequence[KeysAndValues]) -> None:
        """Add rows behind the others; all end at the same column."""
        longest = max(keys.shape[1] for row in rows for keys, _ in row)
        for place in range(len(rows[0])):
            while len(self.layers) <= place:
                self.layers.append(self._layer())
            layer: Any = self.layers[place]
            if not layer.is_initialized:
                layer.lazy_initialization(*(t[None, :, :0][:0] for t in rows[0][place]))
            shift = max(0, longest - layer.length)
            end = layer.length + shift
            for name in ("keys", "values"):
                old = getattr(layer, name)[:, :, : layer.length]
                room = _room(old, old.shape[0] + len(rows), _doubled(end), old.dtype)
                room[: old.shape[0], :, shift:end] = old
                for number, row in enumerate(rows):
                    new = row[place][name == "values"]
                    room[old.shape[0] + number, :, end - new.shape[1] : end] = new
                setattr(layer, name, room)
            layer.length = end

    def of_row(self, row: int, first: int, end: int | None = None) -> KeysAndValues:
        """A copy of one row's columns from ``first``."""
        return [
            (
                layer.keys[row, :, first : end or layer.length].clone(),
                layer.values[row, :, first : end or layer.length].clone(),
            )
            for layer in self._filled()
        ]

    def _filled(self) -> list[Any]:
        return [
            layer for layer in self.layers if isinstance(layer, _Layer) and layer.is_initialized
        ]


def held_in(tensor: Tensor, wide: bool) -> torch.dtype:
    """The type in which keys and values of this type are held."""
    narrow = tensor.dtype in (torch.bfloat16, torch.float16)
    slow = wide and narrow and not fast_bfloat16()
    return factor_type(tensor) if slow else tensor.dtype


def _room(like: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Zeros, because a masked value still must be a number."""
    _, heads, _, features = like.shape
    return torch.zeros(rows, heads, columns, features, dtype=dtype, device=like.device)


def _grown(tensor: Tensor, end: int, length: int) -> Tensor:
    room = _room(tensor, tensor.shape[0], _doubled(end), tensor.dtype)
    room[:, :, :length] = tensor[:, :, :length]
    return room


def _moved(part: Tensor, at: int) -> Tensor:
    room = _room(part, part.shape[0], _doubled(at + part.shape[2]), part.dtype)
    room[:, :, at : at + part.shape[2]] = part
    return room


def _doubled(columns: int) -> int:
    return max(FIRST, 1 << (columns - 1).bit_length())

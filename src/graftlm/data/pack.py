"""Packing: several examples in one sequence, with little padding.

The algorithm is best-fit decreasing: the longest example first, each into the fullest sequence that
still has room. Positions that restart (`batch.collate`) prevent attention between examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from graftlm.data.example import Example

__all__ = ["PackedExamples", "lengths_of", "pack", "pack_examples"]


def pack(lengths: Sequence[int] | npt.NDArray[np.int32], capacity: int) -> list[list[int]]:
    """Bins of example indices whose lengths add up to at most ``capacity``.

    Takes O(n · log capacity) for n examples. The remaining room of a bin has only ``capacity + 1``
    possible values; a tree over them finds the fullest bin that an example still fits into.

    Args:
        lengths: tokens in each example, each at most ``capacity``.
        capacity: tokens in a bin.
    """
    sizes = np.asarray(lengths)
    if len(sizes) and int(sizes.max()) > capacity:
        raise ValueError(f"an example of {int(sizes.max())} tokens exceeds the capacity {capacity}")
    leaves = 1 << capacity.bit_length()
    count = np.zeros(2 * leaves, dtype=np.int64).tolist()  # bins with that much room, summed up
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]
    bins: list[list[int]] = []

    def add(room: int, change: int) -> None:
        node = room + leaves
        while node:
            count[node] += change
            node >>= 1

    def smallest_room(least: int) -> int:
        """The smallest remaining room of a bin that is at least ``least``; -1 if there is none."""
        node = least + leaves
        if count[node]:
            return least
        while node > 1:
            right = node ^ 1
            if node & 1 == 0 and count[right]:
                node = right
                while node < leaves:
                    node *= 2
                    if not count[node]:
                        node += 1
                return node - leaves
            node >>= 1
        return -1

    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        room = smallest_room(size)
        if room < 0:
            room, number = capacity, len(bins)
            bins.append([])
        else:
            number = open_bins[room].pop()
            add(room, -1)
        bins[number].append(index)
        open_bins[room - size].append(number)
        add(room - size, 1)
    return bins


class PackedExamples(Sequence[Example]):
    """Sequences packed from examples; each is built when it is accessed."""

    def __init__(self, examples: Sequence[Example], bins: Sequence[Sequence[int]]) -> None:
        self._examples = examples
        self._bins = bins

    def __len__(self) -> int:
        return len(self._bins)

    @property
    def lengths(self) -> list[int]:
        """Tokens in each sequence."""
        sizes = lengths_of(self._examples)
        return [sum(int(sizes[i]) for i in members) for members in self._bins]

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return PackedExamples(self._examples, self._bins[index])
        parts = [self._examples[i] for i in self._bins[index]]
        return Example(
            np.concatenate([np.asarray(part.input_ids, dtype=np.int32) for part in parts]),
            np.concatenate([np.asarray(part.supervised, dtype=np.bool_) for part in parts]),
            lengths=tuple(n for part in parts for n in part.lengths or (len(part),)),
        )


def pack_examples(examples: Sequence[Example], capacity: int) -> PackedExamples:
    """Pack examples into sequences of at most ``capacity`` tokens."""
    return PackedExamples(examples, pack(lengths_of(examples), capacity))


def lengths_of(examples: Sequence[Example]) -> Sequence[int] | npt.NDArray[np.int32]:
    """Tokens in each example; examples with stored lengths are not read."""
    known: Sequence[int] | None = getattr(examples, "lengths", None)
    return [len(example) for example in examples] if known is None else known

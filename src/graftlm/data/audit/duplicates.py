"""Finds duplicates and near-duplicates of rows, by content hash and by MinHash over tokens.

MinHash (Broder 1997): the share of equal minima of random hash functions estimates the Jaccard
similarity of two sets, here of the token trigrams of two examples. Examples whose minima agree in
one of a few bands are compared exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graftlm.data.example import Example

__all__ = ["NearIndex", "repeats"]

_HASHES, _BANDS = 16, 4
_SIMILAR = 0.9
_RANDOM = np.random.default_rng(20_240_229)
_FACTORS = _RANDOM.integers(1, 2**63, _HASHES, dtype=np.uint64) | np.uint64(1)
_SHIFTS = _RANDOM.integers(0, 2**63, _HASHES, dtype=np.uint64)
_GRAM = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)


def repeats(hashes: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], int]:
    """The indices of examples whose hash occurred before, and the number of distinct hashes."""
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    later = np.setdiff1d(np.arange(len(hashes)), first)
    return later, int((counts > 1).sum())


def grams(example: Example) -> npt.NDArray[np.uint64]:
    """Hashes of the distinct token trigrams of an example."""
    ids = np.asarray(example.input_ids).astype(np.uint64)
    if len(ids) < 3:
        ids = np.pad(ids, (0, 3 - len(ids)))
    mixed = ids[:-2] * _GRAM[0] + ids[1:-1] * _GRAM[1] + ids[2:] * _GRAM[2]
    return np.unique(mixed ^ (mixed >> np.uint64(29)))


class NearIndex:
    """Finds an earlier example that shares at least 90 % of an example's trigrams."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def find(self, example: Example, add_as: int | None = None) -> int | None:
        """The index of an added near-duplicate, if there is one.

        Args:
            example: the example to compare.
            add_as: its own index, to add it if it has no near-duplicate.
        """
        own = grams(example)
        minima = (own[:, None] * _FACTORS + _SHIFTS).min(axis=0)
        keys = [(i, band.tobytes()) for i, band in enumerate(np.split(minima, _BANDS))]
        for candidate in {n for key in keys for n in self._buckets.get(key, ())[:3]}:
            other = grams(self._examples[candidate])
            shared = len(np.intersect1d(own, other, assume_unique=True))
            if shared >= _SIMILAR * (len(own) + len(other) - shared):
                return candidate
        if add_as is not None:
            for key in keys:
                self._buckets[key].append(add_as)
        return None

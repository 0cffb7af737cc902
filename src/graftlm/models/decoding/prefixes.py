"""The keys and values of recent answers, so that the next turn reads only what is new.

A conversation sends all its turns each time. What the model has read or written before keeps its
keys and values, if the same adapter is active: a causal model's do not depend on what follows.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

from graftlm.models.decoding.row_cache import KeysAndValues

__all__ = ["Prefixes"]

WORTH = 8
"""Fewer tokens than this are read again."""


@dataclasses.dataclass(frozen=True)
class _Kept:
    ids: tuple[int, ...]
    cache: KeysAndValues

    @property
    def size(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.cache for t in pair)


class Prefixes:
    """The most recent prefixes, up to ``most_bytes`` of them."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[tuple[str | None, tuple[int, ...]], _Kept] = OrderedDict()

    def keep(self, adapter: str | None, ids: tuple[int, ...], cache: KeysAndValues) -> None:
        """Remember the keys and values of ``ids``; older ones that begin the same are dropped."""
        new = _Kept(ids, cache)
        if new.size > self.most_bytes:
            return
        for key in list(self._kept):
            if key[0] == adapter and ids[: len(key[1])] == key[1]:
                del self._kept[key]
        self._kept[adapter, ids] = new
        while sum(kept.size for kept in self._kept.values()) > self.most_bytes:
            self._kept.popitem(last=False)

    def find(self, adapter: str | None, ids: tuple[int, ...]) -> tuple[int, KeysAndValues] | None:
        """The longest known beginning of ``ids``, at least one token shorter, and its cache."""
        best, length = None, WORTH - 1
        for key, kept in self._kept.items():
            same = _same(kept.ids, ids[:-1]) if key[0] == adapter else 0
            if same > length:
                best, length = key, same
        if best is None:
            return None
        self._kept.move_to_end(best)
        cache = [(k[:, :length], v[:, :length]) for k, v in self._kept[best].cache]
        return length, cache

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


def _same(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Length of the common beginning."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(at for at in range(most) if one[at] != other[at])

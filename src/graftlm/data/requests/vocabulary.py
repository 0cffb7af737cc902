"""What a language has to provide so that requests can be written in it.

Everything the generator says comes from a `Language`; everything a record holds comes from the same
entry that was said, so that the pair is right by construction. Held-out words live beside the
training words in a `Pool`, which makes their disjointness easy to see and to test.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

__all__ = ["DAYS", "City", "Dice", "Item", "Language", "Pool", "Split", "plain"]

T = TypeVar("T")
Split = Literal["train", "heldout"]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun", "today", "tomorrow")


def plain(text: str) -> str:
    """The text without diacritics: ``"Đà Nẵng"`` becomes ``"Da Nang"``."""
    decomposed = unicodedata.normalize("NFD", text.replace("đ", "d").replace("Đ", "D"))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


class Dice:
    """Seeded choices that are the same on every platform and Python version.

    Python promises a stable sequence for ``random()`` only, so every choice is made from it.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self._random() * len(options))]

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability


@dataclass(frozen=True)
class Pool(Generic[T]):
    """Choices for training, and choices kept for the held-out rows."""

    train: tuple[T, ...]
    heldout: tuple[T, ...]

    def of(self, split: Split) -> tuple[T, ...]:
        """The choices of one split."""
        return self.train if split == "train" else self.heldout


@dataclass(frozen=True)
class Item:
    """Something to order: as one says one of it, several of it, and the record's name for it.

    In Vietnamese ``one`` and ``many`` start with the classifier or unit (``"hộp trà sen"``); the
    record holds the bare item.
    """

    record: str
    one: str
    many: str


@dataclass(frozen=True)
class City:
    """A city as the record names it, and the ways people write it."""

    record: str
    spellings: tuple[str, ...]


@dataclass(frozen=True)
class Language:
    """Words, sentence templates and habits of one language.

    A template names its slots in braces. ``order``: items, name, city. ``booking``: people, when,
    name. ``complaint``: device, problem, wish, name. A slot a template leaves out is ``null`` in
    the record.
    """

    templates: Mapping[str, Pool[str]]
    names: Pool[str]
    items: Pool[Item]
    devices: Pool[str]
    cities: Pool[City]
    problems: Mapping[str, tuple[str, ...]]
    wishes: Mapping[str | None, tuple[str, ...]]
    openers: tuple[str, ...]
    closers: tuple[str, ...]
    shorthand: Mapping[str, str]
    people: Callable[[Dice, int], str]
    count: Callable[[Dice, Item, int], str]
    when: Callable[[Dice, str, int, int], str]
    drops_diacritics: bool = False

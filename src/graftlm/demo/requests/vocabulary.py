"""The vocabulary that a language must provide for generated requests.

All text of the generator comes from a `Language`. A message and its record use the same entries, so
the pair is right by construction. A `Pool` contains the held-out words and the training words, so
it is easy to see and to test that they are disjoint.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

__all__ = ["DAYS", "Dice", "Language", "Pool", "Split", "plain"]

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
class Language:
    """Words, sentence templates and habits of one language.

    A template names its slots in braces. ``order``: items, name, city. ``booking``: people, when,
    name. ``complaint``: item, problem, wish, name. A template without a name may get an
    introduction before it or a signature after it. What a message leaves out is ``null`` in its
    record.

    Names and items are combined from parts. There are too many to memorise, so a model has to learn
    to copy them.

    Attributes:
        nouns: A thing to buy, with the word that goes between it and a number (a Vietnamese
            classifier; empty in English).
        item: Joins a noun and an adjective.
        full_name: Joins the two parts of a name.
        count: Says a number of items, given the noun's classifier and the item.
        people: Says a number of people.
        when: Says a day and a time, given day, hour and minute.
        days: The record's word for each of `DAYS`.
        problems: For each value of the field, ways to end "the lamp …".
        wishes: For each value of the field, sentences without the full stop.
    """

    templates: Mapping[str, Pool[str]]
    introductions: Pool[str]
    signatures: Pool[str]
    names: Pool[str]
    second_names: Pool[str]
    nouns: Pool[tuple[str, str]]
    adjectives: Pool[str]
    cities: Pool[str]
    problems: Mapping[str, tuple[str, ...]]
    wishes: Mapping[str | None, tuple[str, ...]]
    openers: tuple[str, ...]
    closers: tuple[str, ...]
    shorthand: Mapping[str, str]
    item: Callable[[str, str], str]
    full_name: Callable[[str, str], str]
    count: Callable[[Dice, str, str, int], str]
    people: Callable[[Dice, int], str]
    when: Callable[[Dice, str, int, int], str]
    days: Mapping[str, str]
    drops_diacritics: bool = False

"""Generates customer messages with their expected records.

A row is drawn in three steps: the facts (what the customer wants), the sentence (a template filled
with one phrase for each fact), and the typing (casing, shorthand, a typo, missing diacritics). The
record is written from the facts, so the typing cannot make it wrong. Typos and shorthand change
only the template's own words, never a fact.

Conventions of the record: a fixed key order for each intent; ``null`` for missing facts; names,
items and cities spelled as the customer spelled them, items in the singular; numbers as digits;
``day`` in the language's short form; ``time`` in 24 hours; ``problem`` and ``wants`` from a fixed
list.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from string import Formatter
from typing import TypeAlias

from graftlm.demo.requests.english import ENGLISH
from graftlm.demo.requests.vietnamese import VIETNAMESE
from graftlm.demo.requests.vocabulary import DAYS, Dice, Language, Split, plain
from graftlm.errors import DataError, near_matches

__all__ = ["CUE", "FIELDS", "LANGUAGES", "generate_rows", "prompt_for"]

Value: TypeAlias = "str | int | None"

LANGUAGES = {"en": ENGLISH, "vi": VIETNAMESE}

FIELDS = {
    "order": ("name", "item", "quantity", "city"),
    "booking": ("name", "people", "day", "time"),
    "complaint": ("name", "item", "problem", "wants"),
}

CUE = " JSON:"

OPENING_HOURS = (12, 13, 18, 19, 20, 21)


@dataclass(frozen=True)
class Slot:
    """The words that fill a template's slot, and the fields of the record they determine."""

    words: str
    settles: dict[str, Value]


def prompt_for(message: str) -> str:
    """The prompt the demo's model is tuned on: the message and a cue, nothing else."""
    return message + CUE


def generate_rows(
    split: Split, count: int, seed: int = 0, languages: tuple[str, ...] = ("en", "vi")
) -> list[dict[str, str]]:
    """Draw ``count`` different rows of ``{"prompt", "completion"}``.

    Args:
        split: ``"train"``, or ``"heldout"``, whose templates, names, items and cities never
            occur in training.
        count: How many rows; languages and intents take turns.
        seed: Same seed, same bytes, on every platform.
        languages: Keys of `LANGUAGES`.
    """
    if split not in ("train", "heldout"):
        raise DataError(f"unknown split {split!r}: expected 'train' or 'heldout'")
    if not languages:
        raise DataError(f"expected at least one language of {', '.join(LANGUAGES)}")
    for name in languages:
        if name not in LANGUAGES:
            raise DataError(f"no requests in language {name!r}{near_matches(name, LANGUAGES)}")
    dice = Dice(f"{split}/{seed}")
    turns = [(language, intent) for intent in FIELDS for language in languages]
    rows: dict[str, str] = {}
    while len(rows) < count:
        language, intent = turns[len(rows) % len(turns)]
        message, record = _draw(dice, LANGUAGES[language], split, intent)
        completion = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        rows.setdefault(prompt_for(message), completion)
    return [{"prompt": prompt, "completion": completion} for prompt, completion in rows.items()]


def _draw(
    dice: Dice, language: Language, split: Split, intent: str
) -> tuple[str, dict[str, Value]]:
    template = dice.pick(language.templates[intent].of(split))
    if "{name}" not in template and dice.chance(0.85):
        if dice.chance(0.4):
            template = f"{dice.pick(language.introductions.of(split))} {template}"
        else:
            template = f"{template} {dice.pick(language.signatures.of(split))}"
    slots = {"name": _name(dice, language, split)} | _SLOTS[intent](dice, language, split)
    hand = _hand(dice, language)
    record: dict[str, Value] = {"intent": intent} | dict.fromkeys(FIELDS[intent])
    for _, slot, _, _ in Formatter().parse(template):
        for field, value in slots[slot].settles.items() if slot else ():
            record[field] = hand(value) if isinstance(value, str) else value
    return hand(_type(dice, language, template, slots)), record


def _hand(dice: Dice, language: Language) -> Callable[[str], str]:
    """How this customer spells: with or without capitals, with or without diacritics."""
    lower, bare = dice.chance(0.5), language.drops_diacritics and dice.chance(0.15)

    def spell(text: str) -> str:
        text = text.lower() if lower else text
        return plain(text) if bare else text

    return spell


def _name(dice: Dice, language: Language, split: Split) -> Slot:
    name = dice.pick(language.names.of(split))
    if dice.chance(0.2):
        name = language.full_name(name, dice.pick(language.second_names.of(split)))
    return Slot(name, {"name": name})


def _item(dice: Dice, language: Language, split: Split) -> tuple[str, str]:
    """A classifier and an item."""
    classifier, noun = dice.pick(language.nouns.of(split))
    return classifier, language.item(noun, dice.pick(language.adjectives.of(split)))


def _order(dice: Dice, language: Language, split: Split) -> dict[str, Slot]:
    classifier, item = _item(dice, language, split)
    quantity = dice.pick((1, *range(1, 11), 12))
    city = dice.pick(language.cities.of(split))
    words = language.count(dice, classifier, item, quantity)
    return {
        "items": Slot(words, {"item": item, "quantity": quantity}),
        "city": Slot(city, {"city": city}),
    }


def _booking(dice: Dice, language: Language, split: Split) -> dict[str, Slot]:
    people, day = dice.pick(range(2, 11)), dice.pick(DAYS)
    hour, minute = dice.pick(OPENING_HOURS), dice.pick((0, 30))
    words = language.when(dice, day, hour, minute)
    return {
        "people": Slot(language.people(dice, people), {"people": people}),
        "when": Slot(words, {"day": language.days[day], "time": f"{hour:02d}:{minute:02d}"}),
    }


def _complaint(dice: Dice, language: Language, split: Split) -> dict[str, Slot]:
    classifier, item = _item(dice, language, split)
    problem, wish = dice.pick(tuple(language.problems)), dice.pick(tuple(language.wishes))
    return {
        "item": Slot(f"{classifier} {item}".lstrip(), {"item": item}),
        "problem": Slot(dice.pick(language.problems[problem]), {"problem": problem}),
        "wish": Slot(dice.pick(language.wishes[wish]), {"wants": wish}),
    }


_SLOTS = {"order": _order, "booking": _booking, "complaint": _complaint}


def _type(dice: Dice, language: Language, template: str, slots: dict[str, Slot]) -> str:
    """Fill the template as a hurried customer would type it."""
    if dice.chance(0.3):
        template = f"{dice.pick(language.openers)} {template}"
    if dice.chance(0.15):
        template = f"{template} {dice.pick(language.closers)}"
    hurried, clumsy = dice.chance(0.2), dice.chance(0.2)
    parts = []
    for literal, slot, _, _ in Formatter().parse(template):
        if hurried:
            literal = " ".join(language.shorthand.get(word, word) for word in literal.split(" "))
        if clumsy and dice.chance(0.5):
            literal = _typo(dice, literal)
        parts.append(literal + (slots[slot].words if slot else ""))
    message = "".join(parts)
    return message[0].upper() + message[1:]


def _typo(dice: Dice, text: str) -> str:
    """Drop, double or swap a letter in the middle of one of the longer words."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    i = dice.pick(long)
    word, at = words[i], dice.pick(range(1, len(words[i]) - 2))
    words[i] = dice.pick(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        )
    )
    return " ".join(words)

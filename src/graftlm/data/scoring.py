"""Score predicted JSON records against expected ones: exact match and field accuracy.

Records are compared as objects, so the order of keys and the spacing do not matter, but types do:
``2`` is neither ``"2"`` nor ``2.0``, and ``true`` is not ``1``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from graftlm.errors import DataError

__all__ = ["RowScore", "TotalScore", "score", "settled", "total"]


@dataclass(frozen=True)
class RowScore:
    """How one prediction compares with its record.

    Attributes:
        exact: The prediction is that record and nothing else.
        fields_right: Expected fields whose value was predicted.
        fields_total: Expected fields.
        parses: The prediction is one JSON object and nothing else.
    """

    exact: bool
    fields_right: int
    fields_total: int
    parses: bool


@dataclass(frozen=True)
class TotalScore:
    """Counts over many rows, and their ratios."""

    rows: int
    exact: int
    fields_right: int
    fields_total: int
    parses: int

    @property
    def exact_match(self) -> float:
        """The share of rows that are exactly right."""
        return self.exact / self.rows

    @property
    def field_accuracy(self) -> float:
        """The share of expected fields that are right."""
        return self.fields_right / self.fields_total

    @property
    def parse_rate(self) -> float:
        """The share of rows that are one JSON object and nothing else."""
        return self.parses / self.rows


def score(predicted_text: str, expected_text: str) -> RowScore:
    """Compare a model's text with the expected JSON record.

    The first JSON object of the prediction is scored field by field. If any text except whitespace
    follows it, ``exact`` and ``parses`` are false, because a model has to stop by itself.
    """
    expected, rest = _first_object(expected_text)
    if not expected or rest.strip():
        raise DataError(f"expected one JSON object with at least one field, got {expected_text!r}")
    predicted, rest = _first_object(predicted_text)
    parses = predicted is not None and not rest.strip()
    right = (
        sum(
            field in predicted and _same(predicted[field], value)
            for field, value in expected.items()
        )
        if predicted
        else 0
    )
    exact = parses and right == len(expected) == len(predicted or {})
    return RowScore(exact, right, len(expected), parses)


def settled(predicted_text: str) -> bool:
    """Whether no further text can change the score of a prediction, whatever is expected.

    So it is where the text begins with anything but an object, or goes on after one.
    """
    start = predicted_text.lstrip()
    found, rest = _first_object(start)
    return bool(rest.strip()) if found is not None else not start.startswith("{") and start != ""


def total(scores: Iterable[RowScore]) -> TotalScore:
    """Add up the scores of at least one row."""
    rows = list(scores)
    if not rows:
        raise DataError("no rows to score: expected at least one")
    return TotalScore(
        rows=len(rows),
        exact=sum(row.exact for row in rows),
        fields_right=sum(row.fields_right for row in rows),
        fields_total=sum(row.fields_total for row in rows),
        parses=sum(row.parses for row in rows),
    )


def _first_object(text: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON object the text starts with (None if it does not) and the text after it."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
    text = text.lstrip()
    try:
        value, end = decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return None, text
    return (value, text[end:]) if isinstance(value, dict) else (None, text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _same(left: Any, right: Any) -> bool:
    """Equal values of equal types, at every depth: two values with the same canonical JSON."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.data.scoring import RowScore, score, settled, total
from graftlm.errors import DataError

EXPECTED = '{"intent":"booking","name":null,"people":4,"time":"19:30"}'

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(st.text(max_size=6), values, min_size=1, max_size=6)


@settings(derandomize=True, deadline=None)
@given(records, st.booleans(), st.sampled_from(["", " ", "\n"]))
def test_any_spelling_of_the_record_is_exact(record, ascii_only, space):
    backwards = dict(reversed(record.items()))
    predicted = space + json.dumps(backwards, indent=1, ensure_ascii=ascii_only) + space
    assert score(predicted, json.dumps(record)) == RowScore(True, len(record), len(record), True)


@settings(derandomize=True, deadline=None)
@given(records, st.text(min_size=1, max_size=8).filter(str.strip))
def test_text_after_the_record_is_never_exact(record, tail):
    text = json.dumps(record)
    assert score(text + tail, text) == RowScore(False, len(record), len(record), False)


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=60))
def test_arbitrary_text_is_scored_without_an_error(text):
    assert score(text, EXPECTED).fields_right == 0


@pytest.mark.parametrize(
    ("predicted", "right"),
    [
        ('{"intent":"booking","name":null,"people":4,"time":"19:00"}', 3),
        ('{"intent":"booking","people":4,"time":"19:30"}', 3),
        ('{"intent":"booking","name":null,"people":"4","time":"19:30"}', 3),
        ('{"intent":"booking","name":null,"people":4.0,"time":"19:30"}', 3),
        ('{"intent":"booking","name":"","people":true,"time":"19:30"}', 2),
        ('{"intent":"booking","name":null,"people":4,"time":"19:30","city":"Hue"}', 4),
        ("{}", 0),
    ],
)
def test_a_different_record_parses_and_is_credited_by_field(predicted, right):
    assert score(predicted, EXPECTED) == RowScore(False, right, 4, True)


@pytest.mark.parametrize(
    "predicted",
    [
        "",
        "null",
        "[" + EXPECTED + "]",
        "The record: " + EXPECTED,
        EXPECTED[:-1],
        '{"intent":"booking","intent":"order"}',
        '{"intent":NaN}',
        '{"a":' * 100_000,
    ],
)
def test_text_that_does_not_start_with_a_json_object_gets_nothing(predicted):
    assert score(predicted, EXPECTED) == RowScore(False, 0, 4, False)


@pytest.mark.parametrize("expected", ["", "{}", "[1]", EXPECTED + "x"])
def test_a_malformed_expectation_is_an_error(expected):
    with pytest.raises(DataError, match="expected one JSON object"):
        score(EXPECTED, expected)


def test_total_adds_up_rows_and_weighs_every_field_alike():
    scores = [score(EXPECTED, EXPECTED), score('{"a":2}', '{"a":1}'), score("?", '{"a":1}')]
    result = total(scores)
    assert (result.rows, result.exact, result.parses) == (3, 1, 2)
    assert result.exact_match == pytest.approx(1 / 3)
    assert result.field_accuracy == pytest.approx(4 / 6)
    assert result.parse_rate == pytest.approx(2 / 3)


def test_total_of_nothing_is_an_error():
    with pytest.raises(DataError, match="no rows"):
        total([])


pieces = st.sampled_from(
    ["{", "}", '"a"', ": ", "1", ", ", " ", "\n", "x", '"', "[", "]", '{"a": 1}']
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(pieces, max_size=8).map("".join), st.lists(pieces, max_size=8).map("".join))
def test_a_settled_score_is_that_of_every_longer_text(text, more):
    if settled(text):
        assert score(text + more, '{"a": 1}') == score(text, '{"a": 1}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False), (" \n", False), ('{"a": 1}', False), ('{"a": 1} \n', False), ('{"a": ', False),
        ("Sure", True), ("[", True), ('{"a": 1} {', True), ('{"a": 1}\nSo', True),
    ],
)  # fmt: skip
def test_score_is_settled_by_text_that_is_no_object_or_follows_one(text, expected):
    assert settled(text) is expected

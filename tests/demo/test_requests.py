from __future__ import annotations

import hashlib
import json
import re
from string import Formatter

import pytest

from graftlm.data.scoring import score
from graftlm.demo.requests import CUE, FIELDS, LANGUAGES, generate_rows
from graftlm.demo.requests.generate import _SLOTS
from graftlm.demo.requests.vocabulary import Dice, Pool, plain
from graftlm.errors import DataError

ROWS = {split: generate_rows(split, 1500, seed=3) for split in ("train", "heldout")}
RECORDS = {split: [json.loads(row["completion"]) for row in rows] for split, rows in ROWS.items()}
both_splits = pytest.mark.parametrize("split", ["train", "heldout"])
all_languages = pytest.mark.parametrize("language", LANGUAGES.values(), ids=LANGUAGES.keys())


@both_splits
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(split):
    assert generate_rows(split, 200, seed=3) == ROWS[split][:200]
    assert generate_rows(split, 200, seed=4) != ROWS[split][:200]


def test_choices_do_not_depend_on_the_platform_or_python_version():
    dice = Dice("train/0")
    drawn = "".join(dice.pick("abcdefghij") for _ in range(1000))
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "e0823d06f5706338"


def test_no_heldout_message_was_trained_on():
    prompts = {split: [row["prompt"] for row in rows] for split, rows in ROWS.items()}
    assert not set(prompts["train"]) & set(prompts["heldout"])
    for rows in prompts.values():
        assert len(set(rows)) == len(rows) == 1500


def test_heldout_names_items_and_cities_never_occur_in_training_records():
    for field in ("name", "item", "city"):
        train, heldout = (
            {plain(record[field]).lower() for record in RECORDS[split] if record.get(field)}
            for split in ("train", "heldout")
        )
        assert train
        assert heldout
        assert not train & heldout


@all_languages
def test_the_pools_of_the_two_splits_are_disjoint_even_without_diacritics(language):
    pools = [
        *language.templates.values(),
        language.names,
        language.second_names,
        language.adjectives,
        language.cities,
        Pool(*(tuple(noun for _, noun in language.nouns.of(split)) for split in ROWS)),
    ]
    for pool in pools:
        train, heldout = ([plain(text).lower() for text in pool.of(split)] for split in ROWS)
        assert len({*train, *heldout}) == len(train) + len(heldout)


@all_languages
def test_no_heldout_template_is_a_training_template_with_other_punctuation(language):
    words = lambda template: " ".join(re.findall(r"[{}\w]+", plain(template).lower()))  # noqa: E731
    for pool in language.templates.values():
        assert not {words(t) for t in pool.train} & {words(t) for t in pool.heldout}


@all_languages
@pytest.mark.parametrize("intent", FIELDS)
def test_every_template_uses_only_the_slots_of_its_intent_and_each_once(language, intent):
    known = {"name", *_SLOTS[intent](Dice("any"), language, "train")}
    for template in language.templates[intent].train + language.templates[intent].heldout:
        slots = [slot for _, slot, _, _ in Formatter().parse(template) if slot]
        assert slots
        assert set(slots) <= known
        assert len(set(slots)) == len(slots)


@both_splits
def test_records_have_their_intents_fields_in_order_and_normal_values(split):
    days = {word for language in LANGUAGES.values() for word in language.days.values()}
    for record in RECORDS[split]:
        assert tuple(record) == ("intent", *FIELDS[record["intent"]])
        if record["intent"] == "order":
            assert record["quantity"] in range(1, 13)
        elif record["intent"] == "booking":
            assert record["people"] in range(2, 11)
            assert record["day"] in days
            assert re.fullmatch(r"(1[2389]|2[01]):(00|30)", record["time"])
        else:
            assert record["problem"] in ("broken", "late", "wrong")
            assert record["wants"] in ("refund", "replacement", None)


@both_splits
def test_text_of_the_record_is_spelled_in_the_message(split):
    for row, record in zip(ROWS[split], RECORDS[split], strict=True):
        for field in ("name", "item", "city"):
            value = record.get(field)
            assert value is None or value in row["prompt"], row


@both_splits
def test_intents_and_languages_take_turns_and_null_is_sometimes_right(split):
    intents = [record["intent"] for record in RECORDS[split]]
    assert {intent: intents.count(intent) for intent in FIELDS} == dict.fromkeys(FIELDS, 500)
    for field in ("name", "city", "wants"):
        share = [record[field] is None for record in RECORDS[split] if field in record]
        assert 0.02 < sum(share) / len(share) < 0.6


def test_one_language_can_be_asked_for():
    english = generate_rows("train", 90, languages=("en",))
    assert all(row["prompt"].isascii() or "🙏" in row["prompt"] or "😊" in row["prompt"]
               for row in english)  # fmt: skip
    vietnamese = generate_rows("train", 300, languages=("vi",))
    with_marks = sum(plain(row["prompt"]) != row["prompt"] for row in vietnamese)
    assert 150 < with_marks < 270


@both_splits
def test_rows_end_in_the_cue_and_completions_score_as_themselves(split):
    for row in ROWS[split]:
        assert row["prompt"].endswith(CUE)
        assert len(row["prompt"]) < 200
        assert score(row["completion"], row["completion"]).exact


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "unknown split 'test'"),
        ({"languages": ("vn",)}, "no requests in language 'vn'; did you mean 'vi'"),
        ({"languages": ()}, "expected at least one language"),
    ],
)
def test_a_wrong_request_says_what_was_expected(arguments, message):
    with pytest.raises(DataError, match=re.escape(message)):
        generate_rows(**{"split": "train", "count": 3, **arguments})

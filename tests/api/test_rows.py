"""Rows in hand get a name: the same rows the same name, in every form that holds them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from graftlm.api.rows import named_rows
from graftlm.config import DataConfig
from graftlm.data import load_examples
from graftlm.errors import DataError

ROWS = [{"prompt": f"say {word}", "completion": f"{word}!"} for word in ("một", "two", "ba")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))


def test_a_list_a_generator_and_a_hub_data_set_of_the_same_rows_have_one_name() -> None:
    given = named_rows(ROWS)
    assert named_rows(row for row in ROWS) == given
    assert named_rows(datasets.Dataset.from_list(ROWS)) == given
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    assert named_rows(splits) == given
    assert named_rows(ROWS[:2]) != given
    assert [json.loads(line) for line in Path(str(given)).read_text("utf-8").splitlines()] == ROWS


def test_the_named_rows_give_the_tokens_of_the_rows(tiny_tokenizer: Any) -> None:
    named = load_examples(named_rows(ROWS), tiny_tokenizer, DataConfig())
    given = load_examples(ROWS, tiny_tokenizer, DataConfig())
    assert [e.input_ids.tolist() for e in named] == [e.input_ids.tolist() for e in given]


def test_a_split_is_chosen_by_its_purpose() -> None:
    splits = {"train": ROWS, "validation": ROWS[:1]}
    assert named_rows(splits) == named_rows(ROWS)
    assert named_rows(splits, "eval") == named_rows(ROWS[:1])


def test_names_stay_as_they_are() -> None:
    assert named_rows(Path("rows.jsonl")) == "rows.jsonl"
    assert named_rows({"a.jsonl": 2, "b.jsonl": 0.5}) == {"a.jsonl": 2.0, "b.jsonl": 0.5}


def test_columns_that_json_does_not_have_become_text_or_are_refused() -> None:
    row = {**ROWS[0], "day": datetime.date(2026, 1, 2), "n": np.int64(3)}
    [line] = Path(str(named_rows([row]))).read_text("utf-8").splitlines()
    assert json.loads(line) == {**ROWS[0], "day": "2026-01-02", "n": 3}
    with pytest.raises(DataError, match=r"row:1: it holds a object; expected text"):
        named_rows([{**ROWS[0], "image": object()}])

"""Columns that change what a row means are used or refused; others are named, never passed over."""

from __future__ import annotations

import re
import shlex

import pytest

from graftlm.config import DataConfig, parse_override
from graftlm.data import load_examples, parse_row
from graftlm.data.messages import RowError
from graftlm.errors import DataError
from tests.oracles.chat_families import tokenizer_of

PLAIN = {"prompt": "two pizzas", "completion": "pizza: 2"}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
PICTURE = {"messages": [{"role": "user", "content": "<image> what?"}, CHAT["messages"][1]]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PLAIN | {"system": "Be brief."}, "system .* has no place in plain text.*format=chat"),
        (PLAIN | {"history": [["a", "b"]]}, "history .* holds earlier turns.*format=chat"),
        (CHAT | {"history": [["a", "b"]]}, "history .* holds earlier turns"),
        (PLAIN | {"label": False}, r"label \(False\) marks an answer that is not wanted"),
        (CHAT | {"label": "false"}, "label .* not wanted"),
        (PICTURE | {"images": ["cat.png"]}, "images .* trains on text only"),
        (PLAIN | {"audio": {"path": "x"}}, "audio .* trains on text only"),
        (PLAIN | {"weight": 0.5}, r"weight \(0\.5\) asks for a row to count more or less"),
        (PLAIN | {"weight": 0}, "count more or less"),
        (CHAT | {"sample_weight": "2"}, "count more or less"),
        (PLAIN | {"chosen": "a", "rejected": "b"}, "chosen .* is preference data"),
        (CHAT | {"rejected": "b"}, "rejected .* is preference data"),
        (CHAT | {"train": False}, "train .* asks not to train"),
        (CHAT | {"loss_mask": [0, 1]}, "loss_mask .* holds tokens or masks made elsewhere"),
        (CHAT | {"chat_template_kwargs": {"x": 1}}, "changes how the template renders"),
        (CHAT | {"documents": [{"t": "x"}]}, "documents .* is given to the chat template"),
    ],
)
def test_a_column_that_changes_the_row_is_refused_with_the_rows_number(row, said, tmp_path):
    with pytest.raises(RowError, match=said):
        parse_row(row)
    with pytest.raises(DataError, match="row:2: the column"):
        load_examples(
            [PLAIN if "prompt" in row else CHAT, row], tokenizer_of("zephyr"), DataConfig()
        )


def test_a_refused_column_is_left_out_when_the_user_says_so():
    row = PLAIN | {"label": False}
    with pytest.raises(RowError) as refused:
        parse_row(row)
    word = shlex.split(re.search(r"--set (.*)$", str(refused.value))[1])[0]
    path, value = parse_override(word)
    assert path == ["data", "ignore"]
    assert parse_row(row, ignore=value).completion == "pizza: 2"


@pytest.mark.parametrize(
    "column",
    [{"label": True}, {"weight": 1}, {"weight": 1.0}, {"images": []}, {"system": ""},
     {"history": None}, {"chosen": None}],
)  # fmt: skip
def test_values_that_change_nothing_are_no_reason_to_refuse(column):
    assert parse_row(PLAIN | column).prompt == "two pizzas"


def test_a_system_column_becomes_the_system_message():
    expected = ({"role": "system", "content": "Be brief."}, *CHAT["messages"])
    for name in ("system", "system_prompt"):
        row = parse_row(CHAT | {name: "Be brief."})
        assert row.messages == expected
        assert row.learn == (False, False, True)
    assert parse_row({"messages": list(expected), "system": "Be brief."}).messages == expected
    with pytest.raises(RowError, match="two different system messages"):
        parse_row({"messages": list(expected), "system": "Be long."})
    row = parse_row(PLAIN | {"system": "Be brief."}, format="chat")
    assert [m["role"] for m in row.messages] == ["system", "user", "assistant"]


def test_history_becomes_earlier_turns():
    row = parse_row({"instruction": "c", "output": "d", "history": [["a", "b"]]})
    assert [m["content"] for m in row.messages] == ["a", "b", "c", "d"]
    assert row.learn == (False, True, False, True)
    with pytest.raises(RowError, match="history is not a list"):
        parse_row({"instruction": "c", "output": "d", "history": ["a", "b"]})


def test_older_names_of_tools_and_calls_are_read():
    call = {"name": "book", "arguments": '{"n": 4}'}
    messages = [CHAT["messages"][0], {"role": "assistant", "content": None, "function_call": call}]
    row = parse_row({"messages": messages, "functions": [{"name": "book", "parameters": {}}]})
    assert row.messages[1]["tool_calls"][0]["function"] == {"name": "book", "arguments": {"n": 4}}
    assert row.tools == [{"type": "function", "function": {"name": "book", "parameters": {}}}]


def test_unused_columns_are_counted_and_named():
    rows = [PLAIN | {"id": i, "source": "web" if i else ""} for i in range(3)]
    report = load_examples(rows, tokenizer_of("zephyr"), DataConfig()).report
    assert report.unused == {"id": 3, "source": 2}
    assert "data: columns that are not used: id, source" in report.said("data", 512)


@pytest.mark.parametrize(
    ("names", "mapping"),
    [
        (("câu hỏi", "trả lời"), {"prompt": "câu hỏi", "completion": "trả lời"}),
        (("Trả lời", "Câu hỏi"), {"prompt": "Câu hỏi", "completion": "Trả lời"}),
        (("STT", "Cau_hoi", "Dap an"), {"prompt": "Cau_hoi", "completion": "Dap an"}),
        (("đề bài", "lời giải"), {"prompt": "đề bài", "completion": "lời giải"}),
        (("question", "answer"), {"prompt": "question", "completion": "answer"}),
        (("Zpráva", "it's"), {"prompt": "Zpráva", "completion": "it's"}),
        (("a: b", "{c}"), {"prompt": "a: b", "completion": "{c}"}),
    ],
)
def test_the_error_holds_the_words_that_mend_it(names, mapping):
    """What follows `--set` goes through a shell and YAML and makes the row readable."""
    row = {name: f"text of {name}" for name in names}
    with pytest.raises(RowError) as refused:
        parse_row(row)
    word = shlex.split(re.search(r"--set (.*)\)$", str(refused.value))[1])[0]
    path, columns = parse_override(word)
    assert (path, columns) == (["data", "columns"], mapping)
    parsed = parse_row(row, columns)
    assert (parsed.prompt, parsed.completion) == tuple(f"text of {n}" for n in mapping.values())


def test_a_mapped_name_is_found_however_its_accents_are_composed():
    import unicodedata

    row = {unicodedata.normalize("NFD", "Câu hỏi"): "a", "trả lời": "b"}
    parsed = parse_row(row, {"prompt": "câu hỏi", "completion": "Trả Lời"})
    assert (parsed.prompt, parsed.completion) == ("a", "b")


@pytest.mark.parametrize(
    "value", [3, 2.5, True, {"a": 1}, ["a", "b"], 10**5000], ids=lambda v: type(v).__name__
)
def test_content_that_is_no_text_is_refused_by_name(value):
    for row in (PLAIN | {"completion": value}, {"messages": [{"role": "user", "content": value}]}):
        with pytest.raises(RowError, match=r"expected (text|one text|two strings)"):
            parse_row(row)


def test_dolly_rows_are_read_with_their_context():
    row = parse_row({"instruction": "a", "context": "b", "response": "c", "category": "qa"})
    assert [m["content"] for m in row.messages] == ["a\n\nb", "c"]
    assert row.unused == ("category",)

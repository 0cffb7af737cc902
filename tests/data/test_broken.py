"""Broken inputs: what loading for training says, and what the audit says.

`python -m tests.data.test_broken` prints the table.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from graftlm.config import DataConfig
from graftlm.data import Encoder, load_examples
from graftlm.data.audit.audit import Audit, audit
from graftlm.errors import DataError
from tests.oracles.chat_families import tokenizer_of

GOOD = {"prompt": "two pizzas", "completion": "pizza: 2"}


class Case(NamedTuple):
    """A file, what loading it must say (nothing: it trains), and the audit's finding."""

    file: str
    content: bytes | None
    error: str | None
    finding: str | None
    """`!kind` is an error; `None`: the audit cannot read it either, and says the same."""
    settings: Mapping[str, Any] = MappingProxyType({})


def lines(*rows: Any) -> bytes:
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
    )


def chat(*messages: Any, **more: Any) -> bytes:
    return lines({"messages": list(messages), **more})


def varied(count: int, make: Callable[[int], dict[str, str]]) -> bytes:
    return lines(*[make(i) for i in range(count)])


USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
CALL = {"function": {"name": "book", "arguments": "{n: 4"}}
BAD = "!malformed"
LONG = {"prompt": "a b c d " * 40, "completion": "x"}

CASES: dict[str, Case] = {
    "missing file": Case("no.jsonl", None, r"no\.jsonl does not exist; expected a file", None),
    "near name": Case("data.jsnl", None, r"does not exist.*did you mean 'data\.jsonl'", None),
    "glob without match": Case("x*.jsonl", None, "no file matches", None),
    "empty file": Case("data.jsonl", b"", "is empty; expected at least one row", "!empty"),
    "blank lines": Case("data.jsonl", b"\n \n\n", "is empty", "!empty"),
    "line is no JSON": Case(
        "data.jsonl",
        lines(GOOD, GOOD, b"{'prompt': 'a'}"),
        r"data\.jsonl:3: not valid JSON .*found \"\{'prompt': 'a'\}\"; expected one JSON object",
        BAD,
    ),
    "last line cut off": Case(
        "data.jsonl", lines(GOOD) + b'{"prompt": "a", "compl', r":2: not valid JSON", BAD
    ),
    "array on a line": Case("data.jsonl", lines([GOOD]), r":1: found a list, expected", BAD),
    "row is a string": Case("data.jsonl", lines("hello"), "found a string, expected", BAD),
    "row is empty": Case("data.jsonl", lines({}), "the row is empty", BAD),
    "unknown columns": Case(
        "data.jsonl",
        lines({"question": "a", "answer": "b"}),
        r"found columns question, answer; the nearest format is completion, which needs prompt and "
        r"completion \(use --set 'data\.columns=\{prompt: question, completion: answer\}'\)",
        BAD,
    ),
    "typo in a column": Case(
        "data.jsonl",
        lines({"promt": "a", "completion": "b"}),
        r"data\.columns=\{prompt: promt\}",
        BAD,
    ),
    "answer is null": Case(
        "data.jsonl", lines({"prompt": "a", "completion": None}), "completion is null", BAD
    ),
    "answer is a number": Case(
        "data.jsonl", lines({"prompt": "a", "completion": 3}), r"is int \(3\), expected text", BAD
    ),
    "string and list": Case(
        "data.jsonl", lines({"prompt": "a", "completion": [ANSWER]}), "two strings or two", BAD
    ),
    "messages no list": Case("data.jsonl", lines({"messages": "hi"}), "messages is str", BAD),
    "messages empty": Case("data.jsonl", chat(), "messages is empty", BAD),
    "unknown role": Case(
        "data.jsonl",
        chat(USER, {"role": "asistant", "content": "x"}),
        r"messages\[1\] has the role 'asistant'.*did you mean 'assistant'",
        BAD,
    ),
    "no role": Case("data.jsonl", chat({"content": "x"}), "expected role and content", BAD),
    "no content": Case("data.jsonl", chat(USER, {"role": "assistant"}), "has no content", BAD),
    "no answer": Case("data.jsonl", chat(USER), "no assistant message to learn from", BAD),
    "picture": Case(
        "data.jsonl",
        chat({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER),
        "part of type 'image_url', expected text only",
        BAD,
    ),
    "weight of a half": Case(
        "data.jsonl", chat(USER, ANSWER | {"weight": 0.5}),
        "weight is 0.5, expected 0 or 1: an answer is learned or not. To have rows count", BAD
    ),
    "train is a word": Case(
        "data.jsonl", chat(USER, ANSWER | {"train": "no"}), "expected true or false", BAD
    ),
    "train on a user": Case(
        "data.jsonl", chat(USER | {"train": True}, ANSWER), "only answers are learned", BAD
    ),
    "call with broken arguments": Case(
        "data.jsonl",
        chat(USER, {"role": "assistant", "tool_calls": [CALL]}),
        "arguments is not valid JSON",
        BAD,
    ),
    "call the template loses": Case(
        "data.jsonl",
        chat(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "book"}}]}),
        "does not show the call of book",
        BAD,
        {"chat_template": "vicuna"},
    ),
    "ShareGPT with an unknown speaker": Case(
        "data.jsonl",
        lines({"conversations": [{"from": "alien", "value": "x"}]}),
        r"conversations\[0\] has the role 'alien'",
        BAD,
    ),
    "preferences": Case(
        "data.jsonl", lines({"prompt": "a", "chosen": "b", "rejected": "c"}), "preference data", BAD
    ),
    "half a surrogate pair": Case(
        "data.jsonl",
        b'{"prompt": "a", "completion": "b\\ud83d"}\n',
        r"half a surrogate pair \(U\+D83D\)",
        BAD,
    ),
    "Latin-1": Case(
        "data.jsonl", b'{"prompt": "caf\xe9", "completion": "b"}', "not UTF-8", BAD
    ),
    "UTF-16 without its mark": Case(
        "data.jsonl", lines(GOOD).decode().encode("utf-16-le"), "not valid JSON", BAD
    ),
    "ragged CSV": Case(
        "data.csv", b"prompt,completion\na,b\nc,d,e\n", r":3: found 3 fields, expected 2", BAD
    ),
    "short CSV row": Case("data.csv", b"prompt,completion\na\n", "found 1 fields", BAD),
    "open quote in CSV": Case("data.csv", b'prompt,completion\na,"b\n', "not valid CSV", BAD),
    "CSV in Latin-1": Case("data.csv", b"prompt,completion\ncaf\xe9,b\n", "is not UTF-8", None),
    "broken JSON array": Case(
        "data.json", b'[\n{"prompt": "a", "completion": "b"},\n{"prompt": ]', r"json:3: not", BAD
    ),
    "gzip cut off": Case(
        "data.jsonl.gz", gzip.compress(lines(*[GOOD] * 9))[:-12], "cannot read", None
    ),
    "no gzip at all": Case("data.jsonl.gz", lines(GOOD), "cannot read", None),
    "no Parquet at all": Case("data.parquet", lines(GOOD), "cannot read .*data.parquet", None),
    "unknown suffix": Case("data.pdf", b"PK", r"suffix \.pdf; expected one of \.arrow", None),
    "old spreadsheet": Case("data.xls", b"\xd0\xcf", r"suffix \.xls;.*save it .* as \.xlsx", None),
    "no workbook at all": Case("data.xlsx", lines(GOOD), "cannot read .* as an Excel", None),
    "columns that are not there": Case(
        "data.jsonl",
        lines(GOOD),
        r"maps 'prompt' to 'promt', but the row has columns .*did you mean 'prompt'",
        BAD,
        {"columns": {"prompt": "promt"}},
    ),
    "all rows too long": Case(
        "data.jsonl", lines(LONG), "1 are longer than max_length=64", "!nothing_to_learn"
    ),
    "answer cut away": Case(
        "data.jsonl", lines(LONG), "in 1 no token is learned", "!nothing_to_learn",
        {"truncation": "right"},
    ),
    "nothing may be learned": Case(
        "data.jsonl",
        chat(USER, ANSWER | {"train": False}),
        "nothing is left to learn from",
        "!nothing_to_learn",
    ),
    "many rows too long": Case("data.jsonl", lines(GOOD, GOOD, LONG), None, "!too_long"),
    "empty answers": Case(
        "data.jsonl", lines({"prompt": "a", "completion": " "}, GOOD), None, "!empty_answer"
    ),
    "one answer to everything": Case(
        "data.jsonl",
        varied(12, lambda i: {"prompt": f"q{i}", "completion": "yes"}),
        None,
        "!constant_answer",
    ),
    "answers without an end": Case(
        "data.jsonl",
        varied(9, lambda i: {"prompt": f"q{i}", "completion": f"long answer {i} " * 9}),
        None,
        "!no_end",
        {"truncation": "right"},
    ),
    "template applied twice": Case(
        "data.jsonl",
        varied(9, lambda i: {"prompt": f"[INST] q{i} [/INST]", "completion": f"a{i}"}),
        None,
        "!template_in_text",
    ),
    "wrongly decoded": Case(
        "data.jsonl", lines({"prompt": "cafÃ©", "completion": "b"}, GOOD), None, "mojibake"
    ),
    "lost characters": Case(
        "data.jsonl",
        lines({"prompt": "caf\ufffd", "completion": "b"}),
        None,
        "replacement_character",
    ),
    "special token in the text": Case(
        "data.jsonl",
        lines({"prompt": "a </s> b", "completion": "b"}),
        None,
        "special_token_in_text",
    ),
    "rows repeated": Case("data.jsonl", lines(GOOD, GOOD), None, "duplicates"),
    "chat that ends with a question": Case(
        "data.jsonl", chat(USER, ANSWER, USER), None, "ends_without_answer"
    ),
}  # fmt: skip


def made(case: Case, folder: Path) -> Path:
    path = folder / case.file
    (folder / "data.jsonl").write_bytes(b"")
    if case.content is not None:
        path.write_bytes(case.content)
    return path


def loaded(case: Case, path: Path) -> str | None:
    """What loading says, or `None` when there is something to train on."""
    config = DataConfig(**{"max_length": 64, **case.settings})
    try:
        load_examples(path, tokenizer_of("zephyr"), config)
    except DataError as error:
        return str(error)
    return None


def audited(case: Case, path: Path) -> Audit:
    config = DataConfig(**{"max_length": 64, **case.settings})
    tokenizer = tokenizer_of("zephyr")
    encoder = Encoder(tokenizer, config)
    return audit(load_examples(path, tokenizer, config, strict=False), encoder, config)


def test_the_corpus_is_large():
    assert len(CASES) >= 30


@pytest.mark.parametrize("name", CASES)
def test_loading_refuses_what_would_not_train(name, tmp_path):
    case = CASES[name]
    said = loaded(case, made(case, tmp_path))
    if case.error is None:
        assert said is None
    else:
        assert said is not None
        assert re.search(case.error, said), said


@pytest.mark.parametrize("name", CASES)
def test_the_audit_finds_it(name, tmp_path):
    case = CASES[name]
    path = made(case, tmp_path)
    if case.finding is None:
        with pytest.raises(DataError, match=case.error):
            audited(case, path)
        return
    result = audited(case, path)
    found = {("!" if f.severity == "error" else "") + f.kind: f for f in result.findings}
    assert case.finding in found
    assert result.ok != case.finding.startswith("!")
    json.dumps(result.to_dict())


def test_good_rows_have_no_finding(tmp_path):
    case = Case(
        "data.jsonl", varied(20, lambda i: {"prompt": f"q{i}", "completion": f"a{i}"}), None, None
    )
    result = audited(case, made(case, tmp_path))
    assert result.ok
    assert [f for f in result.findings if f.severity != "info"] == []


def main() -> None:
    """Print the table."""
    import tempfile

    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = made(case, Path(folder))
            said = loaded(case, path) or "trains"
            print(f"{name}\n  train: {said}".replace(folder + "/", ""))
            if case.finding is not None:
                for f in audited(case, path).findings:
                    text = f"  check: {f.severity}: {f.count} {f.message}"
                    print("; ".join([text, *f.places[:1]]).replace(folder + "/", ""))


if __name__ == "__main__":
    main()

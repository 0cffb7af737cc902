"""Every source and format gives the same examples."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import sys

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graftlm.config import DataConfig
from graftlm.data import load_examples, parse_row
from graftlm.data.examples import held_out
from graftlm.data.readers import READERS, read_file
from graftlm.errors import DataError
from tests.oracles.chat_families import tokenizer_of

ROWS = [{"prompt": f"say {i}\nand “more”", "completion": f"{i}, {'x' * i}"} for i in range(25)]
CHATS = [
    {"messages": [{"role": "user", "content": r["prompt"]},
                  {"role": "assistant", "content": r["completion"]}]}
    for r in ROWS
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of("zephyr")


def ids(examples) -> list[list[int]]:
    return [list(example.input_ids) for example in examples]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def separated(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "completion"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def arrow(new) -> bytes:
    table = pa.Table.from_pylist(ROWS)
    sink = io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def _emptied() -> bytes:
    """A column emptied and rows deleted in Excel leave separators behind."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";")
    writer.writerows(
        [[*row, "", ""] for row in (("prompt", "completion"), *map(dict.values, ROWS))]
    )
    writer.writerows([["", "", "", ""]] * 3)
    return text.getvalue().encode()


def workbook() -> bytes:
    book = openpyxl.Workbook()
    book.active.append(["prompt", "completion"])
    for row in ROWS:
        book.active.append([row["prompt"], row["completion"]])
    sink = io.BytesIO()
    book.save(sink)
    return sink.getvalue()


def excel(delimiter: str) -> str:
    """A table as Excel writes it: every line ends in CRLF, lines inside a field in LF."""
    return separated(delimiter).decode()


FILES = {
    "utf16.jsonl": lambda: jsonl(ROWS).decode().encode("utf-16"),
    "semicolons.csv": lambda: b"\xef\xbb\xbf" + excel(";").encode(),
    "named.csv": lambda: b"sep=;\r\n" + excel(";").encode(),
    "tabs.csv": lambda: excel("\t").encode("utf-16"),
    "bars.csv": lambda: excel("|").encode(),
    "commas.tsv": lambda: excel(",").encode(),
    "emptied.csv": lambda: _emptied(),
    "rows.xlsx": workbook,
    "rows.jsonl": lambda: jsonl(ROWS),
    "bom.jsonl": lambda: b"\xef\xbb\xbf" + jsonl(ROWS),
    "rows.ndjson": lambda: jsonl(ROWS).replace(b"\n", b"\r\n\r\n"),
    "rows.json": lambda: json.dumps(ROWS, indent=1).encode(),
    "held.json": lambda: json.dumps({"version": "1", "data": ROWS}).encode(),
    "lines.json": lambda: jsonl(ROWS),
    "rows.csv": lambda: separated(","),
    "rows.tsv": lambda: separated("\t"),
    "rows.parquet": parquet,
    "file.arrow": lambda: arrow(pa.ipc.new_file),
    "stream.arrow": lambda: arrow(pa.ipc.new_stream),
    "rows.jsonl.gz": lambda: gzip.compress(jsonl(ROWS)),
    "rows.csv.gz": lambda: gzip.compress(separated(",")),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_format_give_the_same_examples(name, tmp_path, tokenizer):
    path = tmp_path / name
    path.write_bytes(FILES[name]())
    assert ids(load_examples(path, tokenizer, DataConfig())) == ids(
        load_examples(ROWS, tokenizer, DataConfig())
    )


def test_zstandard_files_are_read(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl.zst"
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(jsonl(ROWS))
    assert len(load_examples(path, tokenizer, DataConfig())) == len(ROWS)


def test_folders_and_globs_are_read_in_order(tmp_path, tokenizer):
    for number in (2, 1):
        (tmp_path / f"part-{number}.jsonl").write_bytes(jsonl(ROWS[number : number + 2]))
    (tmp_path / ".hidden.jsonl").write_bytes(b"broken")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "notes.pdf").write_bytes(b"no data")
    expected = ids(load_examples(ROWS[1:3] + ROWS[2:4], tokenizer, DataConfig()))
    for source in (tmp_path, str(tmp_path / "part-*.jsonl")):
        assert ids(load_examples(source, tokenizer, DataConfig())) == expected


def test_standard_input_is_read(monkeypatch, tokenizer):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(jsonl(ROWS)), encoding="utf-8"))
    assert len(load_examples("-", tokenizer, DataConfig())) == len(ROWS)


def test_a_text_file_is_one_document(tmp_path, tokenizer):
    path = tmp_path / "book.txt"
    path.write_text("First.\n\nSecond.\n", encoding="utf-8")
    [example] = load_examples(path, tokenizer, DataConfig())
    assert np.all(example.supervised[1:])
    assert example.input_ids[-1] == tokenizer.eos_token_id


def test_every_suffix_is_tested():
    assert {".feather", ".md"} == READERS.keys() - {
        "." + name.removesuffix(".gz").rsplit(".", 1)[1] for name in (*FILES, "book.txt")
    }


def test_chats_are_recognised_in_every_spelling():
    expected = parse_row(CHATS[0])
    [question, answer] = [message["content"] for message in CHATS[0]["messages"]]
    spellings = [
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
        {"instruction": question, "output": answer},
        {"instruction": question, "input": "", "output": answer},
        {"prompt": CHATS[0]["messages"][:1], "completion": CHATS[0]["messages"][1:]},
        {"messages": json.loads(json.dumps(CHATS[0]["messages"])), "id": 7},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": question}]},
                      CHATS[0]["messages"][1] | {"tool_calls": None}]},
    ]  # fmt: skip
    for row in spellings:
        assert parse_row(row).messages == expected.messages
        assert parse_row(row).learn == expected.learn
    alpaca = parse_row({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert alpaca.messages[0]["content"] == "Add.\n\n1 2"


def test_columns_are_mapped():
    row = parse_row({"q": "a", "a": "b"}, {"prompt": "q", "completion": "a"})
    assert (row.prompt, row.completion) == ("a", "b")


def test_chats_in_a_csv_are_json(tmp_path, tokenizer):
    path = tmp_path / "chats.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["messages"])
        writer.writeheader()
        writer.writerows([{"messages": json.dumps(chat["messages"])} for chat in CHATS])
    assert ids(load_examples(path, tokenizer, DataConfig())) == ids(
        load_examples(CHATS, tokenizer, DataConfig())
    )


def test_weights_take_rows_more_or_less_often(tmp_path, tokenizer):
    many = [{"prompt": f"{i}", "completion": f"{i}"} for i in range(400)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(many))
    (tmp_path / "b.jsonl").write_bytes(jsonl(ROWS))
    mix = {str(tmp_path / "a.jsonl"): 0.5, str(tmp_path / "b.jsonl"): 2}
    mixed = ids(load_examples(mix, tokenizer, DataConfig()))
    rows = ids(load_examples(ROWS, tokenizer, DataConfig()))
    taken = mixed[: -2 * len(ROWS)]
    assert 160 < len(taken) < 240
    assert mixed[-2 * len(ROWS) :] == [row for row in rows for _ in range(2)]
    assert mixed == ids(load_examples(mix, tokenizer, DataConfig()))


def test_a_row_is_on_the_same_side_for_ever(tokenizer):
    config = DataConfig(train="", eval_fraction=0.3)
    rows = [{"prompt": f"{i}", "completion": f"{i * i}"} for i in range(300)]

    def sides(data) -> tuple[set[int], set[int]]:
        examples = load_examples(data, tokenizer, config)
        held = held_out(examples.hashes, 0.3)
        return set(examples.hashes[~held].tolist()), set(examples.hashes[held].tolist())

    train, held = sides(rows)
    assert not train & held
    assert 60 < len(held) < 120
    shuffled = [dict(reversed(row.items())) | {"id": i} for i, row in enumerate(rows[::-1] * 2)]
    assert sides(shuffled) == (train, held)
    more, more_held = sides([*rows, *ROWS])
    assert train <= more
    assert held <= more_held
    smaller = held_out(np.array(sorted(held), np.uint64), 0.1).sum()
    assert 0 < smaller < len(held)


def test_a_table_with_a_nameless_index_column_is_read(tmp_path, tokenizer):
    """As pandas writes one, unless told not to."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["", "prompt", "completion"])
    writer.writerows([i, row["prompt"], row["completion"]] for i, row in enumerate(ROWS))
    path = tmp_path / "rows.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    assert ids(load_examples(path, tokenizer, DataConfig())) == ids(
        load_examples(ROWS, tokenizer, DataConfig())
    )


def test_columns_may_swap_their_names():
    row = parse_row(
        {"prompt": "a", "completion": "b"}, {"prompt": "completion", "completion": "prompt"}
    )
    assert (row.prompt, row.completion) == ("b", "a")


def test_columns_that_were_named_come_before_others_that_fit():
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    value = {"messages": messages, "question": "a", "answer": "b"}
    assert parse_row(value).format == "messages"
    row = parse_row(value, {"prompt": "question", "completion": "answer"})
    assert (row.format, row.prompt, row.completion) == ("completion", "a", "b")
    assert parse_row(value, {"text": "answer"}).format == "text"


def test_a_readme_beside_the_rows_is_not_one_of_them(tmp_path, tokenizer):
    (tmp_path / "rows.jsonl").write_bytes(jsonl(ROWS))
    for name in ("README.md", "LICENSE.txt", "readme-en.md"):
        (tmp_path / name).write_text("About these rows.")
    (tmp_path / "notices-of-death.txt").write_text("A text to learn.")
    assert len(load_examples(tmp_path, tokenizer, DataConfig())) == len(ROWS) + 1
    assert len(load_examples(tmp_path / "README.md", tokenizer, DataConfig())) == 1


def test_a_workbook_without_its_library_says_what_to_install(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "rows.xlsx").write_bytes(workbook())
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"needs the package openpyxl: pip install 'graftlm\[excel"):
        load_examples(tmp_path / "rows.xlsx", tokenizer, DataConfig())


def test_cells_are_read_as_they_are_shown_and_other_sheets_are_named(tmp_path, tokenizer):
    book = openpyxl.Workbook()
    book.active.append(["prompt", "completion"])
    for value in (3, 2.0, 2.5, True, datetime.date(2024, 5, 1)):
        book.active.append(["a", value])
    book.create_sheet("Other")
    book.save(tmp_path / "rows.xlsx")
    rows = [raw.parse()["completion"] for raw in read_file(tmp_path / "rows.xlsx")]
    assert rows == ["3", "2", "2.5", "TRUE", "2024-05-01"]
    report = load_examples(tmp_path / "rows.xlsx", tokenizer, DataConfig()).report
    assert "Other not" in report.places["sheets_left_out"][0]

"""Rows at the edge of Python, damaged files, and files made to exhaust: a number and a reason."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graftlm.config import DataConfig
from graftlm.data import load_examples
from graftlm.data.prepare import chunks
from graftlm.data.readers import MAX_ROW, Raw, read_file
from graftlm.errors import DataError
from tests.oracles.chat_families import tokenizer_of

GOOD = {"prompt": "a", "completion": "b"}
DIGITS = "1" * 5000
CALL = (
    '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", '
    '"tool_calls": [{"function": %s}]}]}'
)
HALF = "\\ud83d"


@pytest.mark.parametrize(
    "line",
    [
        f'{{"prompt": "a", "completion": {DIGITS}}}',
        f'{{"prompt": "a", "completion": "b", "id": {DIGITS}}}',
        f'{{"messages": [{{"role": "user", "content": {DIGITS}}}]}}',
        f'{{"prompt": "{HALF}", "completion": "b"}}',
        f'{{"messages": [{{"role": "{HALF}", "content": "b"}}]}}',
        f'{{"{HALF}": "a"}}',
        f'{{"instruction": "a", "output": "b", "system": "{HALF}"}}',
        CALL % f'{{"name": "{HALF}", "arguments": {{}}}}',
        CALL % f'{{"name": "f", "arguments": "{{\\"n\\": {DIGITS}}}"}}',
        CALL % '{"name": "f", "arguments": {"n": 1e999}}',
        '{"prompt": ' + "[" * 100_000,
    ],
)
def test_numbers_and_text_at_the_edge_of_python_are_refused_by_row(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    tokenizer = tokenizer_of("qwen2")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: ") as refused:
        load_examples(path, tokenizer, DataConfig())
    str(refused.value).encode()  # what is said can be printed
    assert len(str(refused.value)) < 1000
    report = load_examples(path, tokenizer, DataConfig(), strict=False).report
    assert (report.rows, report.malformed) == (2, 1)


ROW = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", f"[{ROW}]\n[{ROW}]".encode(), "after the end of the array"),
        ("a.json", f"[{ROW}] tail".encode(), "after the end of the array"),
        ("a.json", f'[{{"prompt": "x", "prompt": "y"}}, {ROW}]'.encode(), "stands twice"),
        ("a.json", b'{"data": [], "data": []}', "'data' stands twice"),
        ("a.jsonl", b'{"prompt": "x", "prompt": "y", "completion": "b"}', "'prompt' stands twice"),
        ("a.txt", "hello".encode("utf-16-le"), "null characters, as UTF-16 without"),
        ("a.csv", "prompt,completion\na,b".encode("utf-16-be"), "null characters"),
        ("a.txt", "hello".encode("utf-32"), "UTF-32"),
    ],
)
def test_a_part_of_a_file_that_would_be_lost_or_misread_is_refused(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_examples(tmp_path / name, tokenizer_of("qwen2"), DataConfig())


def test_a_table_that_names_a_column_twice_is_refused(tmp_path):
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    table = pa.Table.from_arrays(columns, names=["prompt", "completion", "prompt"])
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="the table names 'prompt' twice"):
        load_examples(tmp_path / "rows.parquet", tokenizer_of("qwen2"), DataConfig())


def test_a_compressed_file_may_have_capital_letters_in_its_suffix(tmp_path):
    (tmp_path / "rows.jsonl.GZ").write_bytes(gzip.compress(ROW.encode()))
    assert [raw.parse() for raw in read_file(tmp_path / "rows.jsonl.GZ")] == [GOOD]


def test_numbers_of_python_rows_are_refused_alike():
    for row in ({"prompt": "a", "completion": 10**5000}, {"messages": 10**5000}, 10**5000):
        with pytest.raises(DataError, match="row:1: "):
            load_examples([row], tokenizer_of("zephyr"), DataConfig())


def test_a_whole_json_file_with_such_a_number_says_where(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(f'[{json.dumps(GOOD)},\n{{"prompt": {DIGITS}}}]')
    with pytest.raises(DataError, match=r"rows\.json:2: not valid JSON \(Exceeds the limit"):
        load_examples(path, tokenizer_of("zephyr"), DataConfig())


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv"])
def test_a_row_of_endless_size_is_refused_in_little_memory(name, tmp_path):
    """200 MB of one line; the process may use 120 MB more than it does when it starts."""
    path = tmp_path / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wb") as file:
        file.write(b'{"prompt": "' if "json" in name else b"prompt,completion\n")
        for _ in range(200):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"prompt": "a", "completion": "b"}\n' if "json" in name else b",b\n")
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from graftlm.data.readers import read_file\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rows = list(read_file(Path(sys.argv[1])))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "print(type(rows[0].value).__name__, rows[0].value)\n"
        "print(len(rows))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert int(said[0]) < 120_000
    assert said[1].startswith("RowError")
    assert said[2] == ("2" if "json" in name else "1")


def test_chunks_are_bounded_by_size():
    rows = [Raw("x", i, {"text": "a" * MAX_ROW}) for i in range(4)]
    assert [len(chunk) for chunk in chunks(iter(rows))] == [1, 1, 1, 1]
    small = [Raw("x", i, {"text": "a"}) for i in range(2500)]
    assert [len(chunk) for chunk in chunks(iter(small))] == [1000, 1000, 500]


def test_a_long_text_without_paragraphs_is_cut(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("word " * 1_000_000)
    rows = [raw.parse()["text"] for raw in read_file(path)]
    assert max(map(len, rows)) <= 3 << 20
    assert "".join(rows) == path.read_text()


def test_rows_of_many_unknown_columns_are_refused_in_seconds(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{f"column_{i}_{j}": "x" for j in range(200)} for i in range(2000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.perf_counter()
    report = load_examples(path, tokenizer_of("zephyr"), DataConfig(), strict=False).report
    assert report.malformed == 2000
    assert time.perf_counter() - start < 15


CORRUPT = """
import random, sys
from pathlib import Path
from graftlm.data.readers import read_file
from graftlm.errors import DataError
path, count = Path(sys.argv[1]), int(sys.argv[2])
data = path.read_bytes()
draw = random.Random(0)
refused = 0
for _ in range(count):
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 1, 4, 40))):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    if draw.random() < 0.2:
        damaged = damaged[: draw.randrange(len(damaged))]
    path.write_bytes(damaged)
    try:
        for raw in read_file(path):
            repr(raw.value)
    except DataError as error:
        assert str(error)
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("suffix", ["arrow", "parquet", "xlsx"])
def test_a_damaged_file_is_refused_and_never_ends_the_process(suffix, tmp_path):
    rows = [
        {"prompt": f"say {i}" * 5, "completion": f"{i}", "n": [{"a": i, "b": "x"}]}
        for i in range(200)
    ]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "xlsx":
        import openpyxl

        book = openpyxl.Workbook()
        for row in rows:
            book.active.append([row["prompt"], row["completion"]])
        book.save(path)
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    command = [sys.executable, "-c", CORRUPT, str(path), "150"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 20


def test_times_that_python_has_not_are_read_as_text(tmp_path):
    path = tmp_path / "rows.parquet"
    times = pa.array([1, 1_700_000_000_000_000_001], pa.timestamp("ns"))
    table = pa.table({"prompt": ["a", "b"], "completion": ["c", "d"], "when": times})
    pq.write_table(table, path)
    rows = [raw.parse() for raw in read_file(path)]
    assert [row["prompt"] for row in rows] == ["a", "b"]
    assert rows[1]["when"] == "2023-11-14 22:13:20.000000001"
    assert len(load_examples(path, tokenizer_of("zephyr"), DataConfig())) == 2


def test_a_named_pipe_or_device_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in (tmp_path / "pipe.jsonl", "/dev/zero", "/dev/full"):
        with pytest.raises(DataError, match="is a device or a named pipe"):
            load_examples(name, tokenizer_of("zephyr"), DataConfig())


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "\udcff.jsonl"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(DataError):
        load_examples(name, tokenizer_of("zephyr"), DataConfig())


def test_random_bytes_are_refused_or_read_in_every_format(tmp_path):
    draw = random.Random(1)
    for suffix in ("jsonl", "json", "csv", "tsv", "txt", "arrow", "parquet", "xlsx", "jsonl.gz"):
        for _ in range(20):
            path = tmp_path / f"rows.{suffix}"
            path.write_bytes(draw.randbytes(draw.randrange(1, 300)))
            with contextlib.suppress(DataError):
                list(read_file(path))


def test_memory_is_measured_in_kilobytes_here():
    """The bounds above rely on Linux's unit."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 10_000

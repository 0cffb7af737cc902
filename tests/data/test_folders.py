"""Which files of a folder are read is said; test splits and caches are not trained on."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from graftlm.config import DataConfig
from graftlm.data import load_examples, parse_row
from graftlm.data.readers import read_file
from graftlm.data.sources import open_source
from graftlm.errors import DataError
from tests.oracles.chat_families import tokenizer_of


def write(path, *prompts):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": prompt, "completion": "b"} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompts(source):
    return [parse_row(raw.parse()).prompt for raw in source]


def arrow(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([{"prompt": name, "completion": "b"} for name in names])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("train", "test"),
    [("train.jsonl", "test.jsonl"), ("rows.jsonl", "dev.jsonl"), ("train/a.jsonl", "test/a.jsonl"),
     ("data/train-00000-of-00002.jsonl", "data/validation-00000-of-00001.jsonl"),
     ("my_train.jsonl", "my_eval.jsonl"), ("a.jsonl", "held/heldout-a.jsonl"),
     ("trainset.jsonl", "testset.jsonl"), ("a.jsonl", "held_out.jsonl"),
     ("a.jsonl", "hold-out/a.jsonl")],
)  # fmt: skip
def test_test_files_are_left_out_of_training_and_named(train, test, tmp_path):
    write(tmp_path / train, "learn")
    write(tmp_path / test, "measure")
    source = open_source(tmp_path)
    assert prompts(source) == ["learn"]
    assert [test in note for note in source.notes] == [False, True]
    assert "not trained on" in source.notes[1]
    assert prompts(open_source(tmp_path, "eval")) == ["measure"]


@pytest.mark.parametrize("pattern", ["*/a.jsonl", "**/*.jsonl"])
def test_the_folders_that_a_pattern_matches_name_the_split(pattern, tmp_path):
    write(tmp_path / "test rows" / "train" / "a.jsonl", "learn")
    write(tmp_path / "test rows" / "test" / "a.jsonl", "measure")
    source = open_source(str(tmp_path / "test rows" / pattern))
    assert prompts(source) == ["learn"]
    assert "test/a.jsonl left out" in source.notes[1]


def test_words_that_only_look_like_a_split_are_none(tmp_path):
    write(tmp_path / "latest.jsonl", "a")
    write(tmp_path / "contest.jsonl", "b")
    source = open_source(tmp_path)
    assert prompts(source) == ["b", "a"]
    assert len(source.notes) == 1
    assert "reads 2 of 2 files (contest.jsonl, latest.jsonl)" in source.notes[0]


def test_a_glob_that_matches_both_trains_on_one(tmp_path):
    write(tmp_path / "train.jsonl", "learn")
    write(tmp_path / "test.jsonl", "measure")
    assert prompts(open_source(str(tmp_path / "*.jsonl"))) == ["learn"]


def test_a_file_that_is_named_itself_is_read_whatever_its_name(tmp_path):
    write(tmp_path / "test.jsonl", "a")
    assert prompts(open_source(tmp_path / "test.jsonl")) == ["a"]
    write(tmp_path / "test2" / "dev.jsonl", "a")
    with pytest.raises(DataError, match=r"holds files to test on only \(dev\.jsonl\)"):
        open_source(tmp_path / "test2")


def test_a_saved_data_set_is_read_by_its_own_list_of_files(tmp_path):
    """As `DatasetDict.save_to_disk` writes it, with a cache that `map` left behind."""
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        name = "data-00000-of-00001.arrow"
        arrow(tmp_path / split / name, split)
        arrow(tmp_path / split / "cache-0123456789abcdef.arrow", "stale")
        (tmp_path / split / "dataset_info.json").write_text("{}")
        state = {"_data_files": [{"filename": name}], "_split": split}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
    assert prompts(open_source(tmp_path)) == ["train"]
    assert prompts(open_source(tmp_path / "train")) == ["train"]
    assert prompts(open_source(tmp_path, "eval")) == ["test"]


def test_cache_files_of_the_hub_library_are_not_rows(tmp_path):
    arrow(tmp_path / "rows-train.arrow", "a")
    arrow(tmp_path / "cache-0123456789abcdef.arrow", "stale")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert prompts(open_source(tmp_path)) == ["a"]


def test_a_mapping_of_splits_gives_the_one_to_train_on():
    rows = {"train": [{"prompt": "a", "completion": "b"}], "test": [{"prompt": "c"}]}
    examples = load_examples(rows, tokenizer_of("zephyr"), DataConfig())
    assert len(examples) == 1
    assert examples.report.sources == ["data: reads the split train; test left out"]
    with pytest.raises(DataError, match="found the splits dev, expected train"):
        load_examples({"dev": []}, tokenizer_of("zephyr"), DataConfig())


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_keys_that_arrow_filled_with_null_are_not_learned(suffix, tmp_path):
    """The live oracle is the same rows as JSON lines."""
    import pyarrow.parquet as pq

    def row(name, arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        properties = {key: {"type": "string"} for key in arguments}
        tool = {"name": name, "parameters": {"properties": properties}}
        return {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ],
            "tools": [{"type": "function", "function": tool}],
        }

    rows = [row("book", {"city": "Hue"}), row("pay", {"amount": "3", "currency": "VND"})]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert "None" in str(table.to_pylist())
    read = [parse_row(raw.parse()) for raw in read_file(path)]
    assert [(r.messages, r.tools) for r in read] == [
        (parse_row(r).messages, parse_row(r).tools) for r in rows
    ]

"""Large data: tokenised in processes into the cache, the same examples as in memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from graftlm.config import DataConfig
from graftlm.data import examples as examples_module
from graftlm.data import load_examples
from graftlm.errors import DataError, ResourceError
from tests.oracles.chat_families import tokenizer_of

ROWS = [
    {"messages": [{"role": "user", "content": f"question {i} ?" * (i % 7 + 1)},
                  {"role": "assistant", "content": f"answer {i} 😀" * (i % 3 + 1)}]}
    for i in range(2300)
]  # fmt: skip


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(examples_module, "CACHE_FROM", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x.input_ids, y.input_ids) and np.array_equal(x.supervised, y.supervised)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_holds_the_same_examples(data, workers, tmp_path):
    tokenizer = tokenizer_of("zephyr")
    config = DataConfig(workers=workers)
    cached = load_examples(data, tokenizer, config)
    memory = load_examples(ROWS, tokenizer, DataConfig(workers=0))
    assert same(cached, memory)
    assert cached.lengths.tolist() == memory.lengths.tolist() == [len(e) for e in memory]
    assert cached.hashes.tolist() == memory.hashes.tolist()
    assert cached.report.to_dict() == memory.report.to_dict()
    assert len(list((tmp_path / "cache" / "data").glob("*/examples.arrow"))) == 1


def test_a_second_run_does_not_tokenise(data, monkeypatch):
    first = load_examples(data, tokenizer_of("zephyr"), DataConfig(workers=0))
    monkeypatch.setattr(
        "graftlm.data.workers.render", lambda *_: pytest.fail("tokenised a second time")
    )
    again = load_examples(data, tokenizer_of("zephyr"), DataConfig(workers=0))
    assert same(first, again)
    assert first.report.to_dict() == again.report.to_dict()


def test_content_settings_and_tokenizer_are_in_the_key(data, tmp_path):
    def entries() -> int:
        return len(list((tmp_path / "cache" / "data").glob("*/examples.arrow")))

    load_examples(data, tokenizer_of("zephyr"), DataConfig(workers=0))
    load_examples(data, tokenizer_of("zephyr"), DataConfig(workers=0, loss_on="all"))
    load_examples(data, tokenizer_of("llama3"), DataConfig(workers=0))
    assert entries() == 3
    load_examples(data, tokenizer_of("zephyr"), DataConfig(workers=0, packing=True))
    assert entries() == 3
    data.write_text(data.read_text(encoding="utf-8").replace("answer 7 ", "reply 7 "))
    load_examples(data, tokenizer_of("zephyr"), DataConfig(workers=0))
    assert entries() == 4


def test_malformed_rows_leave_nothing_in_the_cache(data, tmp_path):
    with data.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:2301: not valid JSON"):
        load_examples(data, tokenizer_of("zephyr"), DataConfig(workers=2))
    assert not list((tmp_path / "cache" / "data").glob("*/examples.arrow"))


def test_two_processes_at_once_get_the_same(data, tmp_path):
    code = (
        "import sys, hashlib\n"
        "from graftlm.data import examples, load_examples\n"
        "from graftlm.config import DataConfig\n"
        "from tests.oracles.chat_families import tokenizer_of\n"
        "examples.CACHE_FROM = 1000\n"
        "made = load_examples(sys.argv[1], tokenizer_of('zephyr'), DataConfig(workers=0))\n"
        "print(hashlib.md5(b''.join(e.input_ids.tobytes() for e in made)).hexdigest(), len(made))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(data)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0].split() for process in both]
    assert said[0] == said[1]
    assert said[0][1] == str(len(ROWS))


def test_views_repeat_and_slice(data):
    made = load_examples(data, tokenizer_of("zephyr"), DataConfig(workers=0))
    view = made.select(np.array([5, 5, 2000]))[1:]
    assert [list(e.input_ids) for e in view] == [
        list(made[5].input_ids),
        list(made[2000].input_ids),
    ]
    assert list(made[-1].input_ids) == list(made[len(made) - 1].input_ids)
    with pytest.raises(IndexError):
        made[len(made)]


def test_room_is_asked_for_only_where_something_is_written(data, monkeypatch):
    load_examples(data, tokenizer_of("zephyr"), DataConfig())
    usage = shutil.disk_usage(data.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert len(load_examples(data, tokenizer_of("zephyr"), DataConfig())) == len(ROWS)
    with pytest.raises(ResourceError, match="Tokenised data needs"):
        load_examples(data, tokenizer_of("zephyr"), DataConfig(max_length=100))


@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty", "no report", "garbage report"])
def test_a_damaged_cache_is_made_again_and_said(damage, data, tmp_path, capsys):
    first = load_examples(data, tokenizer_of("zephyr"), DataConfig())
    [arrow] = (tmp_path / "cache" / "data").glob("*/examples.arrow")
    report = arrow.with_name("report.json")
    content = arrow.read_bytes()
    if damage == "no report":
        report.unlink()
    elif damage == "garbage report":
        report.write_bytes(b"\xff{")
    else:
        middle = len(content) // 2
        overwritten = content[:middle] + bytes(64) + content[middle + 64 :]
        cut = {"cut": content[:middle], "empty": b"", "overwritten": overwritten}
        arrow.unlink()  # the first examples still read the old file
        arrow.write_bytes(cut[damage])
    assert same(first, load_examples(data, tokenizer_of("zephyr"), DataConfig()))
    assert "it is made again" in capsys.readouterr().err
    assert arrow.read_bytes() == content
    load_examples(data, tokenizer_of("zephyr"), DataConfig())
    assert capsys.readouterr().err == ""

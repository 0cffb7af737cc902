"""`graftlm compare`: what is printed, and exit codes."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest

from graftlm.cli import main
from graftlm.report import compare as package
from tests.report.here import Here


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["graftlm", "compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    found = Here()
    monkeypatch.setattr(package, "compare", functools.partial(package.api.compare, run_job=found))
    return found


def test_figures_and_verdict_are_printed_and_json_is_one_object(
    monkeypatch, capsys, tiny_llama: Path, rows_file: Path, tmp_path: Path, here: Here
) -> None:
    arguments = [
        "--model", tiny_llama, "--data", rows_file, "--methods", "lora, qlora", "--steps", 2,
        "--out", tmp_path / "cmp", "--set", "lora.rank=2",
        "--set", "train.learning_rate=2e-4",
    ]  # fmt: skip
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 0
    assert "held-out loss after, nats" in out
    assert "←" in out
    assert "No verdict yet: 2 steps are too few to compare by" in " ".join(out.split())
    assert "2 of 2: QLoRA, seed 0" in err

    code, out, _ = run(monkeypatch, capsys, *arguments, "--json")
    result = json.loads(out)
    assert code == 0
    assert here.began == ["new", "new"]  # nothing was trained twice
    assert [one["name"] for one in result["columns"]] == ["LoRA", "QLoRA"]
    assert result["eval_data"] is None  # a tenth of the data was held out
    assert Path(result["report"]).is_file()


def test_each_method_gets_a_probed_rate_unless_one_is_set() -> None:
    from graftlm.api.compare import _completed
    from graftlm.cli.compare import _settings

    probed = _completed(_settings("m", "d", None, "cpu", 4, []))
    assert probed.train.learning_rate == "auto"
    given = _completed(_settings("m", "d", None, "cpu", 4, ["train.learning_rate=2e-4"]))
    assert given.train.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--methods", "lorra"], "expected some of full, lora, qlora"),
        (["--ranks", "4,x"], "whole numbers"),
        (["--ranks", "0"], "rank 0"),
        (["--seeds", "0"], "--seeds 0"),
        (["--outside", "none.txt"], "none.txt"),
        (["--set", "train.early_stopping_patience=2"], "number of tokens"),
        (["--set", "data.eval_fraction=0"], "--eval-data"),
    ],
)
def test_a_wrong_request_exits_with_2_and_leaves_nothing(
    wrong, words, monkeypatch, capsys, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cmp"
    code, said, err = run(
        monkeypatch, capsys, "--model", tiny_llama, "--data", rows_file, "--out", out, *wrong
    )
    assert (code, said) == (2, "")
    assert words in err
    assert not out.exists()


def test_a_stopped_comparison_exits_with_1(
    monkeypatch, capsys, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    def stop(request: object, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "compare", functools.partial(package.api.compare, run_job=stop))
    code, out, err = run(
        monkeypatch, capsys, "--model", tiny_llama, "--data", rows_file, "--out", tmp_path / "cmp"
    )
    assert (code, out) == (1, "")
    assert "the same command goes on" in err

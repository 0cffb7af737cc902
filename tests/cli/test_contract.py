"""The command line as a contract: help, JSON, exit codes, and errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from graftlm.cli import app as cli

COMMANDS = sorted(get_command(cli.app).commands)  # type: ignore[attr-defined]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def graftlm(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["graftlm", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, graftlm: Run) -> None:
    code, out, _ = graftlm(command, "--help")
    assert code == 0
    assert "Example" in out
    assert f"graftlm {command}" in out


def test_commands_are_those_of_the_contract() -> None:
    expected = {"demo", "doctor", "check", "quantize", "train", "eval", "merge", "generate", "chat"}
    expected |= {"compare"}
    assert expected <= set(COMMANDS)


def test_the_whole_way_in_json(
    graftlm: Run, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    """train → eval → merge → eval → generate, each printing one JSON object and nothing else."""
    run = tmp_path / "run"
    code, out, _ = graftlm(
        "train", "--model", tiny_llama, "--data", rows_file, "--out", run, "--steps", 4,
        "--set", "lora.rank=4", "--set", "train.learning_rate=1e-2", "--json",
    )  # fmt: skip
    assert code == 0
    summary = json.loads(out)
    assert summary["steps"] == 4
    assert summary["method"] == "qlora"
    assert "held-out" not in (run / "report.html").read_text(encoding="utf-8")  # none was given

    code, out, _ = graftlm("eval", tiny_llama, "--adapter", run, "--data", rows_file, "--json")
    assert code == 0
    adapted = json.loads(out)

    merged = tmp_path / "merged"
    code, out, _ = graftlm("merge", run, "--out", merged, "--json")
    assert code == 0
    assert json.loads(out)["onto"] == "nf4"

    code, out, _ = graftlm("eval", merged, "--data", rows_file, "--json")
    assert code == 0
    assert json.loads(out)["loss"] == pytest.approx(adapted["loss"], rel=1e-4)

    code, out, _ = graftlm(
        "generate", tiny_llama, "--adapter", run, "--prompt", "say abc",
        "--max-new-tokens", 5, "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["tokens"] <= 5


def test_quantized_folder_is_a_model(
    graftlm: Run, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    code, out, _ = graftlm("quantize", tiny_llama, "--out", tmp_path / "nf4", "--json")
    assert code == 0
    json.loads(out)
    losses = []
    for model, how in ((tmp_path / "nf4", []), (tiny_llama, ["--quantize", "nf4"])):
        code, out, _ = graftlm("eval", model, *how, "--data", rows_file, "--json")
        assert code == 0
        losses.append(json.loads(out)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_chat_answers_until_the_input_ends(
    graftlm: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n"))
    code, _, err = graftlm("chat", tiny_llama, "--max-new-tokens", 3)
    assert code == 0
    assert "you>" in err


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tmp_path: Path
) -> None:
    from graftlm.errors import DataError

    words = ["graftlm", "train", "--model", str(tiny_llama), "--data", "none.jsonl"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path / "run"), "--debug"])
    with pytest.raises(DataError):
        cli.main()


def bad_requests(tiny_llama: Path, rows: Path, tmp: Path) -> dict[str, tuple[list[Any], list[str]]]:
    """Name → (arguments, words the error must have)."""
    malformed, empty, corrupt = tmp / "bad.jsonl", tmp / "empty.jsonl", tmp / "corrupt"
    malformed.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n', encoding="utf-8")
    empty.write_text("", encoding="utf-8")
    shutil.copytree(tiny_llama, corrupt)
    weights = corrupt / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    train = ["train", "--model", tiny_llama, "--out", tmp / "run", "--data"]
    return {
        "missing data": ([*train, tmp / "no.jsonl"], ["no.jsonl"]),
        "missing model": (
            ["train", "--model", str(tiny_llama) + "x", "--data", rows, "--out", tmp / "run"],
            ["tiny-llamax"],
        ),
        "malformed line": ([*train, malformed], ["bad.jsonl:2"]),
        "empty data": ([*train, empty], ["empty"]),
        "unknown setting": (
            [*train, rows, "--set", "train.learning_rat=1"],
            ["train.learning_rat", "learning_rate"],
        ),
        "setting in the wrong section": (
            [*train, rows, "--set", "rank=4"],
            ["rank", "lora.rank"],
        ),
        "rank zero": ([*train, rows, "--set", "lora.rank=0"], ["lora.rank", "0"]),
        "rank too large": ([*train, rows, "--set", "lora.rank=1000"], ["1000"]),
        "target matches nothing": (
            [*train, rows, "--set", "lora.targets=[q_prj]"],
            ["q_prj", "q_proj"],
        ),
        "corrupt safetensors": (
            ["train", "--model", corrupt, "--data", rows, "--out", tmp / "run"],
            ["model.safetensors"],
        ),
        "unknown method": ([*train, rows, "--method", "lorra"], ["method", "lorra"]),
        "not YAML": ([*train, rows, "--set", "train.steps"], ["section.name=value"]),
        "unknown option": ([*train, rows, "--stepz", "3"], ["--stepz"]),
        "no adapter": (
            ["eval", tiny_llama, "--adapter", tmp / "nothing", "--data", rows],
            ["nothing"],
        ),
        "not an adapter": (["merge", tiny_llama, "--out", tmp / "merged"], ["adapter"]),
        "no model given": (["train", "--data", rows, "--out", tmp / "run"], ["--model"]),
    }


@pytest.mark.parametrize("case", range(16))
def test_bad_request_is_refused_with_a_reason_and_leaves_nothing(
    case: int, graftlm: Run, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    cases = bad_requests(tiny_llama, rows_file, tmp_path)
    assert len(cases) == 16
    name = list(cases)[case]
    arguments, words = cases[name]
    code, out, err = graftlm(*arguments)
    assert (code, out) == (2, ""), name
    assert "Traceback" not in err
    for word in words:
        assert word in err, name
    assert not list((tmp_path / "run").glob("**/*.safetensors"))
    assert not (tmp_path / "merged").exists()


def test_unwritable_output_is_refused(
    graftlm: Run, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    code, _, err = graftlm(
        "train", "--model", tiny_llama, "--data", rows_file, "--out", blocked / "run"
    )
    assert code == 2
    assert str(blocked) in err


def test_full_disk_is_named_and_nothing_is_half_written(
    graftlm: Run, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = graftlm("quantize", tiny_llama, "--out", tmp_path / "nf4")
    assert (code, out) == (2, "")
    assert "No space left" in err
    assert not list(tmp_path.glob(".*nf4*"))
    assert not (tmp_path / "nf4").exists()


def test_too_little_disk_is_told_before_work_starts(
    graftlm: Run, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, _, err = graftlm("quantize", tiny_llama, "--out", tmp_path / "nf4")
    assert code == 2
    assert "free" in err

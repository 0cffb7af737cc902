"""Every setting and every flag with any value: an exit code of the contract, and no traceback.

Every setting is given every value of `EDGES` and what hypothesis draws; every option of a command
gets at least two values. Requests are refused or accepted before a model is opened, and the command
line is built once, so that thousands take seconds: what training would do is replaced by a step
that only asks for the settings.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command

from graftlm.cli import app as cli
from graftlm.config import (
    RunConfig,
    contradictions,
    load_run_config,
    parse_override,
    require_complete,
)
from graftlm.config.checking import SECTIONS
from graftlm.errors import ConfigError, TrainingError

NAMES = [name for name in RunConfig.model_fields if name not in SECTIONS]
NAMES += [f"{section}.{name}" for section, part in SECTIONS.items() for name in part.model_fields]
PARSED: Any = get_command(cli.app)
COMMANDS = PARSED.commands

EDGES = [
    "", "null", "true", "yes", "-1", "0", "1", "1.5", "1:30", ".inf", "-.inf", ".nan", "1e300",
    "9" * 30, "9" * 5000, "auto", "keep", "lora", "[]", "[1]", "{}", "{a: 1}", "[[[", "{a: {b: c}}",
    "&a [*a]", "!!python/object:os.system x", "2026-01-01", "0x10", "a\0b", '"\\ud800"', "é" * 300,
    "x" * 5000, "~", "'", "\n", "2GB", "24", "%", "a=b", "- 1", "? x", "*x", "<<: 1",
]  # fmt: skip
VALUES = st.sampled_from(EDGES) | st.text(max_size=30) | st.integers().map(str)
VALUES |= st.floats().map(str)
ARGUMENTS = st.sampled_from([edge for edge in EDGES if "\0" not in edge]) | st.text(
    st.characters(exclude_characters="\0"), max_size=30
)
QUICK = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def nothing_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import graftlm.planning

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))

    def accept(config: RunConfig, **_: Any) -> Any:
        raise TrainingError("accepted")

    def serve(*_: Any, **__: Any) -> Any:
        raise TrainingError("accepted")

    monkeypatch.setattr(graftlm.planning, "run", accept)
    monkeypatch.setattr("graftlm.studio.serve.serve", serve)
    monkeypatch.setattr("graftlm.distributed.launch.launch", serve)
    monkeypatch.setattr(cli, "app", PARSED)  # `typer` would build it at each call


def outcome(*arguments: str) -> tuple[int, str]:
    said, kept = io.StringIO(), (sys.argv, sys.stderr, sys.stdout)
    sys.argv, sys.stderr, sys.stdout = ["graftlm", *arguments], said, io.StringIO()
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0), said.getvalue()
    finally:
        sys.argv, sys.stderr, sys.stdout = kept
    raise AssertionError("a command always exits")


def require_contract(code: int, said: str) -> None:
    assert code in (0, 1, 2), said
    assert "Traceback" not in said
    assert "fault of graftlm" not in said, said
    assert len(said) < 10_000


def give(name: str, value: str) -> None:
    """Give one setting a value, as ``--set`` does; any error but `ConfigError` is a fault."""
    said = ""
    try:
        config = load_run_config(None, [parse_override(f"{name}={value}")])
        contradictions(config)
        require_complete(config)
    except ConfigError as error:
        said = str(error)
    assert len(said) < 5_000


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_with_every_edge(name: str) -> None:
    for value in EDGES:
        give(name, value)


@settings(QUICK, max_examples=60)
@given(value=VALUES)
def test_every_setting_with_any_value(value: str) -> None:
    for name in NAMES:
        give(name, value)


def test_every_setting_through_the_command(
    nothing_trains: None, tiny_llama: Path, rows_file: Path
) -> None:
    """Beyond the settings: what the command itself does with them before it trains."""
    words = ["train", "--model", str(tiny_llama), "--data", str(rows_file)]
    for number, name in enumerate(NAMES):
        for value in (EDGES[number % len(EDGES)], EDGES[7 * number % len(EDGES)]):
            require_contract(*outcome(*words, "--set", f"{name}={value}"))


@settings(QUICK, max_examples=60)
@given(text=st.text(max_size=200) | st.lists(VALUES, max_size=5).map("\n".join))
def test_any_text_as_a_settings_file(text: str, nothing_trains: None, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    require_contract(*outcome("train", str(file)))


def options(flags: bool) -> list[tuple[str, str]]:
    """Each command's options: those with a value, or those without."""
    return sorted(
        (command, option)
        for command, parsed in COMMANDS.items()
        for parameter in parsed.params
        for option in parameter.opts[:1]
        if option.startswith("--") and parameter.is_flag == flags
    )


REQUIRED = {
    "train": ["--data", "rows.jsonl", "--model", "nowhere"],
    "plan": ["nowhere"],
    "check": ["rows.jsonl", "--model", "nowhere"],
    "eval": ["nowhere", "--data", "rows.jsonl"],
    "quantize": ["nowhere", "--out", "q"],
    "merge": ["nowhere", "--out", "m"],
    "export": ["nowhere", "--to", "gguf", "--out", "e"],
    "generate": ["nowhere", "--prompt", "hello"],
    "chat": ["nowhere"],
    "serve": ["nowhere"],
    "compare": ["--model", "nowhere", "--data", "rows.jsonl", "--out", "c"],
    "demo": ["--model", "nowhere", "--out", "d"],
    "studio": [],
    "doctor": ["--no-such-option"],
}
"""What each command needs, beside a model that is nowhere, so that none gets as far as working."""


def test_every_option_of_every_command(nothing_trains: None) -> None:
    edges = [edge for edge in EDGES if "\0" not in edge]
    assert REQUIRED.keys() == COMMANDS.keys()
    for number, (command, option) in enumerate(options(flags=False)):
        for value in (edges[number % len(edges)], edges[11 * number % len(edges)]):
            require_contract(*outcome(command, *REQUIRED[command], option, value))
    for command, option in options(flags=True):
        require_contract(*outcome(command, *REQUIRED[command], option))


@settings(QUICK, max_examples=60)
@given(which=st.sampled_from(options(flags=False)), value=ARGUMENTS)
def test_any_value_of_any_option(which: tuple[str, str], value: str, nothing_trains: None) -> None:
    command, option = which
    require_contract(*outcome(command, *REQUIRED[command], option, value))


def takes_a_whole_number(parameter: Any) -> bool:
    """Releases of typer describe the type of an option in two ways."""
    described = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    return described is int or getattr(parameter, "type", None).__class__.__name__.startswith("Int")


WHOLE = [
    (command, option)
    for command, option in options(flags=False)
    for parameter in COMMANDS[command].params
    if option in parameter.opts and takes_a_whole_number(parameter)
]


@pytest.mark.parametrize(("command", "option"), WHOLE)
def test_every_whole_number_has_a_largest_value(
    command: str, option: str, nothing_trains: None
) -> None:
    assert len(WHOLE) > 20
    code, said = outcome(command, *REQUIRED[command], option, "9" * 25)
    assert code == 2, said
    assert "nowhere" not in said, "it was refused for another reason"
    assert len(said) < 700


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("compare", "--seeds"),
        ("compare", "--score-rows"),
        ("compare", "--ranks"),
        ("chat", "--max-new-tokens"),
        ("generate", "--max-new-tokens"),
        ("serve", "--max-new-tokens"),
        ("eval", "--batch-size"),
        ("check", "--samples"),
        ("train", "--batch-size"),
        ("plan", "--batch-size"),
        ("train", "--rank"),
    ],
)
def test_a_thousand_million_is_refused_where_it_would_size_memory(
    command: str, option: str, nothing_trains: None
) -> None:
    code, said = outcome(command, *REQUIRED[command], option, "1000000000")
    assert code == 2, said
    assert "nowhere" not in said, "it was refused for another reason"
    assert len(said) < 700


@pytest.mark.parametrize(
    ("command", "option"),
    [("generate", "--temperature"), ("chat", "--top-p"), ("merge", "--least-kept")],
)
def test_what_is_no_number_is_in_no_range(command: str, option: str) -> None:
    for value in ("nan", "inf"):
        code, said = outcome(command, *REQUIRED[command], option, value)
        assert code == 2, said
        assert "nowhere" not in said


def test_many_ranks_are_refused_in_a_few_lines(nothing_trains: None) -> None:
    for ranks in ("9" * 5000, ",".join(map(str, range(1, 3000))), ",".join(["9999999"] * 900)):
        code, said = outcome("compare", *REQUIRED["compare"], "--ranks", ranks)
        assert code == 2
        assert len(said) < 700


def test_more_processes_than_the_machine_can_use_are_refused(nothing_trains: None) -> None:
    for count in ("100000", "9" * 30):
        code, said = outcome("train", *REQUIRED["train"], "--processes", count)
        assert code == 2
        assert "this machine can use" in said
        assert len(said) < 300


def test_a_file_that_is_no_file_or_a_bomb_is_refused_at_once(
    nothing_trains: None, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)
    )
    (tmp_path / "bomb.yaml").write_text(bomb)
    (tmp_path / "many.yaml").write_text("\n".join(f"key{i}: 1" for i in range(9_000)))
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    for name in ("pipe", "bomb.yaml", "many.yaml", "binary.yaml", ".", "missing"):
        code, said = outcome("train", str(tmp_path / name))
        assert code == 2, name
        assert len(said) < 3_000
        assert "Traceback" not in said


def test_an_accepted_request_reaches_the_work(
    nothing_trains: None, tiny_llama: Path, rows_file: Path
) -> None:
    """So that the tests above do not pass because everything is refused."""
    words = ["train", "--model", str(tiny_llama), "--data", str(rows_file)]
    code, said = outcome(*words, "--set", "train.steps=3", "--lr", "1e-3")
    assert (code, said) == (1, "error: accepted\n")

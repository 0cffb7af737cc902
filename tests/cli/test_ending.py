"""How commands end: with output nobody can take, signals, and no memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from graftlm.cache import cache_folder
from graftlm.cli import _shared, app, ending
from graftlm.config import load_run_config
from graftlm.errors import DataError, ModelError

MAIN = "from graftlm.cli import main; main()"


def started(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)} | options.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-c", options.pop("code", MAIN), *map(str, arguments)],
        env=env,
        stderr=subprocess.PIPE,
        **{"stdout": subprocess.PIPE} | options,
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, (out or b"").decode(), err.decode()


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_terminal_without_unicode_is_shown_codes(env: dict[str, str], rows_file: Path) -> None:
    code, _, err = ended(started("train", "--model", "mô-hình-ü", "--data", rows_file, env=env))
    assert code == 2
    assert "Traceback" not in err
    assert "\\xf4" in err or "\\udcc3\\udcb4" in err  # the shell's bytes, where the locale is C


def test_a_full_disk_under_stdout_is_a_failure() -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = ended(started("--version", stdout=full))
    assert code == 1
    assert "No space left" in err
    assert "Traceback" not in err


def test_a_closed_stdout_is_a_failure_once_it_is_used() -> None:
    command = [sys.executable, "-c", MAIN, "--version"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" >&-', "bash", *command], env=env, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "stdout is closed" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_twice_among_the_imports_ends_in_a_line(tiny_llama: Path, rows_file: Path) -> None:
    ready = (
        "from graftlm.cli import main; import sys; print('up', file=sys.stderr, flush=True); main()"
    )
    process = started("eval", tiny_llama, "--data", rows_file, code=ready)
    assert process.stderr is not None
    assert process.stderr.readline() == b"up\n"
    time.sleep(0.5)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    code, _, err = ended(process)
    assert code == 1, err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_memory_that_ran_out_is_said_with_what_needs_less(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    assert ending.exit_code_of(work, debug=False) == 1
    assert "memory ran out" in (said := capsys.readouterr().err)
    assert "micro_batch_tokens" in said


def test_memory_that_ran_out_in_a_library_is_not_said_to_be_its_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ModelError("cannot load a tokenizer: expected tokenizer.json") from error

    assert ending.exit_code_of(work, debug=False) == 1
    said = capsys.readouterr().err
    assert "memory ran out" in said
    assert "tokenizer.json" not in said


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--out=~/x", "--out=/home/me/x"),
        ("out=~/x", "out=/home/me/x"),
        ("data.train=~/rows.jsonl", "data.train=/home/me/rows.jsonl"),
        ("~/x", "~/x"),  # in quotes: not meant as a folder
        ("--prompt=~/x", "--prompt=~/x"),
        ("a ~/b", "a ~/b"),
        ("what is 1=~/x?", "what is 1=~/x?"),
        ("--prompt=~x", "--prompt=~x"),
    ],
)
def test_a_tilde_that_the_shell_left_is_the_home_folder(
    word: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert app._at_home(word) == meant


def test_a_tilde_in_the_settings_is_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    file = tmp_path / "settings.yaml"
    file.write_text("out: ~/runs\nmodel: {name: ~/m}\ndata: {train: {~/a.jsonl: 1, b: 2}}\n")
    config = load_run_config(file)
    assert config.out == "/home/me/runs"
    assert config.model.name == "/home/me/m"
    assert config.data.train == {"/home/me/a.jsonl": 1, "b": 2}
    monkeypatch.setenv("GRAFTLM_CACHE", "~/cache")
    assert cache_folder() == Path("/home/me/cache")


def test_arrow_runs_out_of_memory_as_python_does() -> None:
    import pyarrow

    assert issubclass(pyarrow.ArrowMemoryError, MemoryError)


@pytest.mark.parametrize(
    ("error", "code"), [(DataError("rows"), 2), (OSError(5, "I/O error"), 1), (KeyError("x"), 1)]
)
def test_each_failure_has_its_exit_code_and_debug_raises_it(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    assert ending.exit_code_of(work, debug=False) == code
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(type(error)):
        ending.exit_code_of(work, debug=True)


def test_threads_that_the_tokenizer_cannot_start(tiny_llama: Path) -> None:
    """Rust panics by an exception that is none of Python's; here it is a real one."""
    code = (
        "import os, resource, sys; os.environ['RAYON_NUM_THREADS'] = '4000'\n"
        "from graftlm.cli import ending\n"
        "def work():\n"
        "    from tokenizers import Tokenizer\n"
        "    t = Tokenizer.from_file(sys.argv[1])\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
        "    t.encode_batch(['a'] * 8)\n"
        "sys.exit(ending.exit_code_of(work, debug=False))\n"
    )
    command = [sys.executable, "-c", code, str(tiny_llama / "tokenizer.json")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "true"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "error: memory ran out." in done.stderr
    assert "Traceback" not in done.stderr


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    _shared.say({"loss": float("nan"), "deep": [{"x": float("inf")}, 1.5]}, True, "")
    assert json.loads(capsys.readouterr().out) == {"loss": None, "deep": [{"x": None}, 1.5]}


def test_the_version_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import graftlm

    monkeypatch.setattr("sys.argv", ["graftlm", "--version"])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 0
    assert capsys.readouterr().out == f"graftlm {graftlm.__version__}\n"


def test_a_misspelt_model_is_refused_before_torch_is_imported(rows_file: Path) -> None:
    code = (
        "import sys; from graftlm.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 2\n"
        "assert 'torch' not in sys.modules"
    )
    words = ["train", "--model", "gema-3-270m", "--data", str(rows_file)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "did you mean 'gemma-3-270m'" in done.stderr

"""A merge and an export that meet the machine's limits leave nothing, and the next run succeeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.exporting.test_gguf import adapter_on, saved_base

pytest.importorskip("resource", reason="limits are POSIX")
pytest.importorskip("gguf")

SCRIPT = """
import os, pathlib, resource, sys
import graftlm.exporting.target as target
from graftlm.exporting.measured_merge import measured_merge

adapter, base, work = map(pathlib.Path, sys.argv[1:])
KINDS = {
    "merge": lambda out: measured_merge(adapter, out, base=str(base), least_kept=0, force=True),
    "gguf": lambda out: target.export(adapter, "gguf", out, base=str(base)),
}

def disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

def memory():
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held, held))

def attempt(kind, limit):
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        limit()
        KINDS[kind](work / kind)
    except BaseException as error:
        print(kind, limit.__name__, type(error).__name__, error, file=sys.stderr)
        os._exit(1)
    os._exit(0)

for kind, make in KINDS.items():
    make(work / f"{kind}-before")  # everything is imported before the forks
    for limit in (disk, memory):
        code = attempt(kind, limit)
        print(kind, limit.__name__, code, sorted(p.name for p in work.iterdir() if kind in p.name))
    code = attempt(kind, lambda: None)
    print(kind, "unlimited", code, (work / kind).exists())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_full_disk_and_a_memory_limit_leave_nothing_and_the_next_run_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.exporting import test_gguf

    config = test_gguf.config_for("llama")
    config.update({"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64})
    monkeypatch.setattr(test_gguf, "config_for", lambda _: config)
    base = saved_base(tmp_path / "base", "llama")
    adapter, work = adapter_on(base, tmp_path / "adapter"), tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a fork keeps no other thread
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(adapter), str(base), str(work)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "merge disk 1 ['merge-before']",
        "merge memory 1 ['merge-before']",
        "merge unlimited 0 True",
        "gguf disk 1 ['gguf-before']",
        "gguf memory 1 ['gguf-before']",
        "gguf unlimited 0 True",
    ], done.stderr
    assert "merge disk ResourceError" in done.stderr
    assert "gguf disk ResourceError" in done.stderr

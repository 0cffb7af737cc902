"""A child process ends with its parent, also when that one is killed."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from graftlm.system.child import ask

CHILD = """
import os, sys, time
from graftlm.system.child import end_with_parent

print(sys.stdin.readline().strip(), flush=True)
end_with_parent()
print(os.getpid(), file=sys.stderr, flush=True)
time.sleep(600)
"""
PARENT = f"""
import sys
from graftlm.system.child import ask

ask([sys.executable, "-c", {CHILD!r}], "question")
"""


def test_the_answer_and_the_exit_code_come_back() -> None:
    script = "import sys; print(sys.stdin.readline().upper()); sys.exit(3)"
    assert ask([sys.executable, "-c", script], "qué") == (3, "QUÉ\n\n")
    assert ask([sys.executable, "-c", "import sys; sys.exit(4)"], "x" * 1_000_000)[0] == 4


def test_a_child_of_a_killed_parent_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stderr=subprocess.PIPE) as parent:
        assert parent.stderr is not None
        child = psutil.Process(int(parent.stderr.readline()))
        assert child.is_running()
        parent.kill()
        assert child.wait(timeout=60) is None
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(child.pid)

"""A chat template without a sensible end is refused, not waited for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from graftlm.data import rendering
from graftlm.data.rendering import Template
from graftlm.errors import DataError
from graftlm.system.time_limit import TookTooLongError, time_limit
from tests.oracles.byte_tokenizer import byte_tokenizer

CHAT = [{"role": "user", "content": "hello"}]
LOOPS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}"
)


def test_a_loop_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = LOOPS
    started = time.monotonic()
    with pytest.raises(DataError, match=r"\(own\) takes over 0 s for one row"):
        Template(tokenizer, "own").apply(CHAT, None, True)
    assert time.monotonic() - started < 60


def test_a_text_larger_than_memory_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ 'x' * 10**18 }}"
    with pytest.raises(DataError, match="takes more memory than there is"):
        Template(tokenizer, "own").apply(CHAT, None, True)


def test_a_usual_template_is_not_disturbed() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert Template(tokenizer, "own").apply(CHAT, None, True) == "hello"
    found: list[str] = []
    there = threading.Thread(
        target=lambda: found.append(Template(tokenizer, "own").apply(CHAT, None, True))
    )
    there.start()
    there.join()
    assert found == ["hello"]


def test_a_loop_is_ended_in_a_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of `serve` are rendered in threads."""
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = LOOPS
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(Template(tokenizer, "own").apply, CHAT, None, True)
        with pytest.raises(DataError, match=r"\(own\) takes over 0 s for one row"):
            work.result(timeout=60)
        tokenizer.chat_template = "{{ messages[0].content }}"
        again = [thread.submit(Template(tokenizer, "own").apply, CHAT, None, True) for _ in "abc"]
        assert [one.result() for one in again] == ["hello"] * 3  # the thread goes on as before


def test_an_error_that_is_sent_late_does_not_come_after_the_block() -> None:
    """The end of the time and the end of the block, at once, many times over."""

    def often() -> int:
        ended = 0
        for _ in range(300):
            try:
                with time_limit(0.001):
                    time.sleep(0.001)
            except TookTooLongError:
                ended += 1
            sum(range(1000))  # here it would come
        return ended

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(often).result(timeout=60) <= 300


def test_the_limit_is_gone_after_the_block() -> None:
    with time_limit(0.05):
        pass
    time.sleep(0.1)
    with pytest.raises(TookTooLongError), time_limit(0.05):
        time.sleep(5)


def test_a_profiler_goes_on_after_a_limit_in_a_thread() -> None:
    """A request to raise that was taken back made Python 3.11 repeat a watched call for ever."""
    code = """
import sys, threading
from graftlm.system.time_limit import time_limit
def work():
    with time_limit(60):
        pass
for _ in range(3):
    worker = threading.Thread(target=work); worker.start(); worker.join()
sys.setprofile(lambda *_: None)
work()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

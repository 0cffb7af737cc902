"""What takes long says what it is doing; what is short says nothing."""

from __future__ import annotations

import threading

import pytest

from graftlm.system import heartbeat as module
from graftlm.system.heartbeat import heartbeat


def test_the_latest_word_is_said_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.001)
    said: list[str] = []
    beaten, before = threading.Event(), threading.active_count()

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("layer 2 of 3"):
            beaten.set()

    with heartbeat(say) as note:
        note("layer 1 of 3")
        note("layer 2 of 3")
        assert beaten.wait(60)
    assert "layer 1" not in said[-1]
    assert threading.active_count() == before


def test_short_work_is_silent_also_when_it_fails() -> None:
    said: list[str] = []

    def fail() -> None:
        with heartbeat(said.append) as note:
            note("working")
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert not said

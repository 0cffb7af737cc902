"""Memory that goes back to the system: who asks for it, and when not."""

from __future__ import annotations

import gc
import weakref

import pytest

from graftlm import system


@pytest.mark.parametrize("goes_back", [False, True])
def test_the_heap_is_trimmed_only_where_freed_blocks_go_back(
    goes_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = []
    monkeypatch.setattr(system, "_returns_freed_memory", goes_back)
    monkeypatch.setattr(system, "_trim", lambda: trimmed.append(1))
    system.trim_heap()
    assert len(trimmed) == goes_back
    system.release_freed_memory()  # asked for by name
    assert len(trimmed) == goes_back + 1


def test_only_what_was_alive_before_is_set_aside() -> None:
    class Node:
        itself: object

    def gone_after_a_collection() -> bool:
        node = Node()
        node.itself = node
        last = weakref.ref(node)
        del node
        gc.collect()
        return last() is None

    def fail_inside() -> None:
        with system.long_lived_objects_set_aside():
            assert gc.get_freeze_count() > 1000
            assert gone_after_a_collection()
            raise KeyError

    gc.unfreeze()
    with pytest.raises(KeyError):
        fail_inside()
    assert gc.get_freeze_count() == 0


def test_what_others_have_set_aside_stays_so() -> None:
    gc.freeze()
    try:
        with system.long_lived_objects_set_aside(), system.long_lived_objects_set_aside():
            pass
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()

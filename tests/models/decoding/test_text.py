"""Text that grows: whole characters, and nothing of a stop text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.models.decoding.text import GrowingText
from tests.oracles.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False).input_ids
    return ids


def pieces(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], Any]:
    growing = GrowingText(TOKENIZER, stops)
    found = [growing.push([token]) for token in ids_of(text)]
    return [*found, growing.end()], growing


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_pieces_are_the_text_and_never_half_a_character(text: str) -> None:
    found, _ = pieces(text)
    assert "".join(found) == TOKENIZER.decode(ids_of(text))
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


@settings(max_examples=60, deadline=None)
@given(st.text("abX", max_size=12), st.lists(st.text("abX", min_size=1, max_size=3), max_size=2))
def test_nothing_of_a_stop_text_is_given_out(text: str, stops: list[str]) -> None:
    found, growing = pieces(text, tuple(stops))
    # The answer ends with the token that completes a stop text, wherever that began.
    ends = [at + len(s) for s in stops for at in range(len(text)) if text.startswith(s, at)]
    assert growing.stopped == bool(ends)
    heard = text[: min(ends, default=len(text))]
    wanted = min((heard.find(s) for s in stops if s in heard), default=len(heard))
    assert "".join(found) == heard[:wanted]


def test_an_unfinished_character_comes_at_the_end() -> None:
    growing = GrowingText(TOKENIZER)
    assert growing.push(ids_of("đ")[:1]) == ""
    assert growing.end() == "\ufffd"


@pytest.mark.parametrize("stop", ["", "\n"])
def test_words_come_as_they_are_written(stop: str) -> None:
    growing = GrowingText(TOKENIZER, (stop,))
    assert [growing.push([token]) for token in ids_of("hi you")] == list("hi you")

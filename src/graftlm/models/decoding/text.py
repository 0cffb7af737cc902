"""The text of an answer while it grows.

A character may take several tokens, and a stop text may begin in one token and end in another. So
text is given out only when no later token can change it or make it part of a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["GrowingText"]

UNFINISHED = "\ufffd"
"""What a tokenizer writes for the first bytes of a character."""


class GrowingText:
    """The text of tokens that arrive one by one.

    Args:
        tokenizer: the model's.
        stops: texts that end the answer and are not part of it.

    Attributes:
        given: the text given out so far.
        stopped: whether a stop text has come.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stops = [stop for stop in stops if stop]
        self.given = ""
        self.stopped = False
        self._ids: list[int] = []
        self._from, self._read = 0, 0  # tokens before `_from` are done; to `_read`, in `_waiting`
        self._waiting = ""

    def push(self, ids: Sequence[int]) -> str:
        """Add tokens; the text that they settle."""
        self._ids += ids
        before = self._decode(self._from, self._read)
        now = self._decode(self._from, len(self._ids))
        if now.endswith(UNFINISHED) or len(now) < len(before):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return self._give(now[len(before) :], last=False)

    def end(self) -> str:
        """The text that is left; an unfinished character comes as the tokenizer writes it."""
        before = self._decode(self._from, self._read)
        now = self._decode(self._from, len(self._ids))
        return self._give(now[len(before) :], last=True)

    def _decode(self, start: int, end: int) -> str:
        if start >= end:
            return ""
        text: str = self.tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        return text

    def _give(self, new: str, last: bool) -> str:
        if self.stopped:
            return ""
        self._waiting += new
        places = [at for stop in self.stops if (at := self._waiting.find(stop)) >= 0]
        if places:
            self.stopped = True
            out, self._waiting = self._waiting[: min(places)], ""
        else:
            keep = 0 if last else _possible(self._waiting, self.stops)
            out = self._waiting[: len(self._waiting) - keep]
            self._waiting = self._waiting[len(out) :]
        self.given += out
        return out


def _possible(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that may become a stop text."""
    longest = max(map(len, stops), default=1) - 1
    return next(
        (
            count
            for count in range(min(longest, len(text)), 0, -1)
            if any(stop.startswith(text[-count:]) for stop in stops)
        ),
        0,
    )

"""Finds the start and end of each answer in a rendered conversation, for any template.

This needs no ``{% generation %}`` marks. The conversation is rendered twice, once with each answer
replaced by a character that does not occur in it. The texts around these marks also occur in the
real rendering, and the answers are between them.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from graftlm.data.messages import RowError
from graftlm.data.rendering import Template

__all__ = ["MARKS", "Located", "Span", "TurnFinder"]

MARKS = "\ue000\ue001\ue002\ue003\uf8f0\uf8f1\uf8f2\uf8f3"
"""Private-use characters; the first one not in the conversation marks its answers."""

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Located:
    """A conversation as text.

    Attributes:
        text: the rendering.
        turns: the span of each assistant message, through its end token.
        verbatim: whether the turns contain the answers character by character.
    """

    text: str
    turns: list[Span]
    verbatim: bool


@dataclasses.dataclass(frozen=True)
class TurnFinder:
    """Finds the assistant's turns in the output of one template.

    Attributes:
        template: renders conversations.
        special: matches the tokenizer's special tokens.
        end: the text that closes an answer.
        direct: whether the text before an answer is exactly the generation prompt.
        no_prompt: whether the template has no generation prompt.
    """

    template: Template
    special: re.Pattern[str]
    end: str
    direct: bool
    no_prompt: bool

    def locate(self, messages: list[dict[str, Any]], tools: Any, *, generation: bool) -> Located:
        """Render, and find each assistant turn.

        Raises:
            RowError: the template refuses the conversation, or loses a call of it.
        """
        text = self.template.apply(messages, tools, generation)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            return Located(text, [], True)
        unused = [mark for mark in MARKS if mark not in text]
        if not unused:
            raise RowError("the text uses all private-use characters that mark answers")
        mark = unused[0]
        plain = self.direct and all(messages[i].keys() == {"role", "content"} for i in answers)
        verbatim = self._verbatim(messages, tools, text, mark, generation) if plain else None
        turns = verbatim
        if turns is None:
            turns = [self._turn(messages, tools, text, mark, i, generation) for i in answers]
        closed = [(start, self._through_end(text, end)) for start, end in turns]
        return Located(text, closed, verbatim is not None)

    def _verbatim(
        self, messages: list[dict[str, Any]], tools: Any, text: str, mark: str, generation: bool
    ) -> list[Span] | None:
        """The turns of a template that shows answers unchanged or stripped; otherwise ``None``."""
        blank = [{**m, "content": mark} if m["role"] == "assistant" else m for m in messages]
        between = self.template.apply(blank, tools, generation).split(mark)
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        if len(between) != len(answers) + 1:
            return None
        for contents in (answers, [answer.strip() for answer in answers]):
            turns, at = [], 0
            for before, content in zip(between, contents, strict=False):
                at += len(before)
                turns.append((at, at + len(content)))
                at += len(content)
            pieces = [part for pair in zip(between, contents, strict=False) for part in pair]
            if "".join([*pieces, between[-1]]) == text:
                return turns
        return None

    def _turn(
        self,
        messages: list[dict[str, Any]],
        tools: Any,
        text: str,
        mark: str,
        index: int,
        generation: bool,
    ) -> Span:
        """One turn of any template: the part that changes if only this answer changes."""
        answer = {"role": "assistant", "content": mark}
        try:
            other = self.template.apply(
                [*messages[:index], answer, *messages[index + 1 :]], tools, generation
            )
        except RowError:  # e.g. a tool's result without the call it answers
            answer = {**messages[index], "content": mark}
            other = self.template.apply(
                [*messages[:index], answer, *messages[index + 1 :]], tools, generation
            )
        start = _common(text, other)
        end = len(text) - _common(text[start:][::-1], other[start:][::-1])
        if index and not self.no_prompt:
            prompt = self.template.apply(messages[:index], tools, True)
            if len(prompt) <= end and text.startswith(prompt):
                start = len(prompt)
        for call in messages[index].get("tool_calls", ()):
            if call["function"]["name"] not in text[start:end]:
                raise RowError(
                    f"the chat template ({self.template.name}) does not show the call of "
                    f"{call['function']['name']}; choose a data.chat_template that renders tools"
                )
        return start, end

    def _through_end(self, text: str, end: int) -> int:
        """Extend a turn over the end marker that follows it."""
        if self.end and text.startswith(self.end, end):
            return end + len(self.end)
        closing = self.special.match(text, end)  # another one, e.g. after a tool call
        return closing.end() if closing else end


def _common(a: str, b: str) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))

"""Rows as text: what is rendered, where each answer begins and ends, and what `generate` is given.

Training and inference share this file. A row becomes one text with *turns*: the spans a model has
to produce itself, from the end of the generation prompt to the end of the end-of-turn token. The
tokeniser (`tokenise.py`) never lets a token straddle such an edge, so that the prefix a row was
trained with is, token by token, the prefix `render_prompt` gives.

How turns are found in any template, without ``{% generation %}`` marks: the conversation is
rendered twice, once with each answer replaced by a character that does not occur in it. The texts
around the marks then stand in the real rendering too, and what lies between them are the answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from graftlm.config import DataConfig
from graftlm.data.formats import Row
from graftlm.data.messages import RowError, parse_messages
from graftlm.data.templates import built_in_name, family_template, template_text
from graftlm.errors import DataError

__all__ = ["ChatFormat", "Rendered", "use_chat_template"]

_MARKS = "\ue000\ue001\ue002\ue003\uf8f0\uf8f1\uf8f2\uf8f3"
"""Private-use characters; the first two that a conversation does not contain mark its answers."""

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text, before tokenisation."""

    text: str
    turns: tuple[Span, ...] = ()
    """Spans the model produces, learned or not; no token straddles their edges."""
    learned: tuple[Span, ...] = ()
    """Spans of the tokens that are learned."""
    bos: bool = False
    """Put what the tokenizer puts before a text (usually its begin token) in front."""
    eos: bool = False
    """Append the tokenizer's end token."""
    eos_learned: bool = False


def use_chat_template(tokenizer: Any, name: str = "auto") -> str:
    """Give the tokenizer the template in force, and return its name.

    ``auto`` keeps the tokenizer's own, else takes the built-in of its family. Saving the tokenizer
    records the template; nothing else has to.
    """
    if name == "auto":
        if tokenizer.chat_template:
            return built_in_name(tokenizer) or "own"
        name = family_template(tokenizer)
    tokenizer.chat_template = template_text(name, tokenizer)
    return name


class ChatFormat:
    """Renders rows for one tokenizer; reads from its template how answers begin and end.

    Args:
        tokenizer: takes the template in force as its ``chat_template``.
        config: the template's name, and what is learned.

    Attributes:
        template: the template's name; ``own`` for the tokenizer's.
        replaces_own: a built-in stands in for the tokenizer's own template.
        end: the text that closes an answer, such as ``<|im_end|>``; may be empty.
        markers: the tokenizer's special tokens, as text.
        end_ids: ids of the tokens that end an answer: where generation stops.
        prompt_differs: the generation prompt is not how answers begin in the template.
    """

    def __init__(self, tokenizer: Any, config: DataConfig) -> None:
        self.tokenizer = tokenizer
        self.loss_on = config.loss_on
        own = tokenizer.chat_template
        self.template = use_chat_template(tokenizer, config.chat_template)
        self.replaces_own = bool(own) and own != tokenizer.chat_template
        added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
        shaped = [t for t in added if added[t].special or re.fullmatch(r"[<\[][^\s]+[>\]]", t)]
        specials = sorted({*shaped, *map(str, tokenizer.all_special_tokens)}, key=len, reverse=True)
        self.markers = frozenset(specials)
        self.special = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        if tokenizer.eos_token is None:
            raise DataError(
                "the tokenizer has no end token, so a model could never learn to stop. "
                "Set eos_token in its tokenizer_config.json."
            )
        self._probe()

    def _probe(self) -> None:
        """Learn the template's habits from a conversation of one question and one answer."""
        mark = _MARKS[0]
        asked = [{"role": "user", "content": "a"}]
        try:
            history = self._apply(asked, None, False)
            prompt = self._apply(asked, None, True)
            full = self._apply([*asked, {"role": "assistant", "content": mark}], None, False)
        except RowError as error:
            raise DataError(f"{error}, in a chat of one question and one answer") from None
        header, found, tail = full.partition(mark)
        if not found:
            raise DataError(
                f"the chat template ({self.template}) does not show the assistant's content. "
                "Choose another by the setting data.chat_template."
            )
        gap = header[len(history) :] if prompt == history else ""
        self._no_prompt = header.startswith(history) and bool(gap.strip())
        self._direct = prompt == header or self._no_prompt
        self.prompt_differs = not (header.startswith(prompt) or self._no_prompt)
        closing = self.special.search(tail)
        self._adds_eos = closing is None
        self.end = tail[: closing.end()] if closing else tail.rstrip()
        ids = {self.tokenizer.eos_token_id}
        if closing:
            ids.add(self.tokenizer.convert_tokens_to_ids(closing.group()))
        self.end_ids = sorted(i for i in ids if i is not None)

    def render(self, row: Row) -> Rendered:
        """The row as text, and which parts of it are learned.

        Raises:
            RowError: the template refuses the conversation, or loses a turn of it.
        """
        eos = str(self.tokenizer.eos_token)
        if row.kind == "text":
            ends = row.completion.endswith(eos)
            span = ((0, len(row.completion)),)
            return Rendered(row.completion, (), span, bos=True, eos=not ends, eos_learned=True)
        if row.kind == "completion":
            start = row.prompt + "\n" if row.prompt else ""
            text = start + row.completion
            turn = ((len(start), len(text)),)
            learned = ((0, len(text)),) if self.loss_on == "all" else turn
            ends = row.completion.endswith(eos)
            return Rendered(text, turn, learned, bos=True, eos=not ends, eos_learned=True)
        return self._render_chat(row)

    def _render_chat(self, row: Row) -> Rendered:
        messages = list(row.messages)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers and self.loss_on != "all":
            roles = ", ".join(message["role"] for message in messages)
            raise RowError(f"the chat has no assistant message to learn from (roles: {roles})")
        text, turns = self._locate(messages, row.tools, generation=False)
        eos = self._adds_eos and messages[-1]["role"] == "assistant"
        if eos:
            text = text[: turns[-1][1]]
        wanted = [row.learn[i] for i in answers]
        if self.loss_on == "last":
            last = max((n for n, w in enumerate(wanted) if w), default=-1)
            wanted = [n == last for n in range(len(wanted))]
        learned = tuple(turn for turn, want in zip(turns, wanted, strict=True) if want)
        if self.loss_on == "all":
            learned, wanted = ((0, len(text)),), [True]
        return Rendered(text, tuple(turns), learned, eos=eos, eos_learned=eos and wanted[-1])

    def prompt(self, given: str | Sequence[dict[str, Any]], tools: Any = None) -> Rendered:
        """What the model is given before it answers: exactly how a training row begins.

        Args:
            given: a prompt, rendered plainly as ``prompt``/``completion`` rows are, or messages.
            tools: JSON schemas of functions.
        """
        if isinstance(given, str):
            return Rendered(given + "\n" if given else "", bos=True)
        messages = list(parse_messages(list(given), "messages")[0])
        if not self._no_prompt:
            text, turns = self._locate(messages, tools, generation=True)
            return Rendered(text, tuple(turns))
        answer = {"role": "assistant", "content": _MARKS[0]}
        text, turns = self._locate([*messages, answer], tools, generation=False)
        return Rendered(text[: turns[-1][0]], tuple(turns[:-1]))

    def _apply(self, messages: list[dict[str, Any]], tools: Any, generation: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=generation, tokenize=False
            )
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, IndexError) as error:
            raise RowError(f"the chat template ({self.template}) refuses: {error}") from error
        return text

    def _locate(
        self, messages: list[dict[str, Any]], tools: Any, *, generation: bool
    ) -> tuple[str, list[Span]]:
        """Render, and find each assistant turn: its span reaches through its end token."""
        text = self._apply(messages, tools, generation)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            return text, []
        unused = [mark for mark in _MARKS if mark not in text]
        if not unused:
            raise RowError("the text uses all private-use characters that mark answers")
        mark = unused[0]
        plain = self._direct and all(messages[i].keys() == {"role", "content"} for i in answers)
        turns = self._verbatim(messages, tools, text, mark, generation) if plain else None
        if turns is None:
            turns = [self._turn(messages, tools, text, mark, i, generation) for i in answers]
        return text, [(start, self._through_end(text, end)) for start, end in turns]

    def _verbatim(
        self, messages: list[dict[str, Any]], tools: Any, text: str, mark: str, generation: bool
    ) -> list[Span] | None:
        """The turns of a template that shows answers as they are, or stripped; else ``None``."""
        blank = [{**m, "content": mark} if m["role"] == "assistant" else m for m in messages]
        between = self._apply(blank, tools, generation).split(mark)
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
        """One turn of any template, by what changes when only this answer changes."""
        answer = {"role": "assistant", "content": mark}
        try:
            other = self._apply(
                [*messages[:index], answer, *messages[index + 1 :]], tools, generation
            )
        except RowError:  # e.g. a tool's result without the call it answers
            answer = {**messages[index], "content": mark}
            other = self._apply(
                [*messages[:index], answer, *messages[index + 1 :]], tools, generation
            )
        start = _common(text, other)
        end = len(text) - _common(text[start:][::-1], other[start:][::-1])
        if index and not self._no_prompt:
            prompt = self._apply(messages[:index], tools, True)
            if len(prompt) <= end and text.startswith(prompt):
                start = len(prompt)
        for call in messages[index].get("tool_calls", ()):
            if call["function"]["name"] not in text[start:end]:
                raise RowError(
                    f"the chat template ({self.template}) does not show the call of "
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

"""Renders rows as text, with the span of each answer, and renders prompts for `generate`.

Training and inference share this file. A row becomes one text with *turns*: the spans that a model
has to produce, from the end of the generation prompt to the end of the end-of-turn token. The
tokeniser (`tokenise.py`) never lets a token cross the edge of a turn. So the prefix in training is
the same, token by token, as the prefix from `render_prompt`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graftlm.config import DataConfig
from graftlm.data.dropped import dropped_parts
from graftlm.data.formats import Row
from graftlm.data.messages import RowError, parse_messages
from graftlm.data.prompt_format import PromptFormat, format_in
from graftlm.data.rendering import Template
from graftlm.data.templates import built_in_name, family_template, template_text
from graftlm.data.turns import MARKS, Span, TurnFinder
from graftlm.errors import ConfigError, DataError

__all__ = ["ChatFormat", "Rendered", "template_name", "use_chat_template"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text, before tokenisation."""

    text: str
    turns: tuple[Span, ...] = ()
    """Spans that the model produces, learned or not; no token crosses their edges."""
    learned: tuple[Span, ...] = ()
    """Spans of the tokens that are learned."""
    bos: bool = False
    """Whether to prepend the tokens that the tokenizer puts before a text (usually its begin
    token), unless the text begins with them."""
    eos: bool = False
    """Whether to append the tokenizer's end token."""
    eos_learned: bool = False
    dropped: tuple[tuple[str, str], ...] = ()
    """Content that the template did not show: (kind of finding, content)."""


def use_chat_template(tokenizer: Any, name: str = "auto") -> str:
    """Set the tokenizer's chat template and return its name.

    ``auto`` keeps the tokenizer's own template, or uses the built-in of its family. Saving the
    tokenizer records the template.
    """
    chosen = template_name(tokenizer, name)
    if chosen != "own":
        tokenizer.chat_template = template_text(chosen, tokenizer)
    elif not tokenizer.chat_template:
        raise ConfigError(
            "data.chat_template is own, but the tokenizer has no template: use auto, or name one"
        )
    return chosen


def template_name(tokenizer: Any, name: str = "auto") -> str:
    """The name of the template that ``name`` selects: a built-in's, or ``own``."""
    if name != "auto":
        return name
    if tokenizer.chat_template:
        return built_in_name(tokenizer) or "own"
    return family_template(tokenizer)


class ChatFormat:
    """Renders rows for one tokenizer; reads from its template how answers begin and end.

    Args:
        tokenizer: the template is set as its ``chat_template``.
        config: the template's name, and the choice of learned tokens.

    Attributes:
        template: the template's name; ``own`` for the tokenizer's.
        replaces_own: whether a built-in replaces the tokenizer's own template.
        end: the text that closes an answer, such as ``<|im_end|>``; may be empty.
        markers: the tokenizer's special tokens, as text.
        markers_used: the markers that the template writes around a question and an answer, by id.
        end_ids: ids of the tokens that end an answer, where generation stops.
        prompt_differs: whether answers in the template do not begin with the generation prompt.
        dated: whether the template prints today's date.
        ends: the ends of answers inside a chat and of the last one, if they differ.
        recorded: the plain format of an earlier training, if the template records it.
    """

    def __init__(self, tokenizer: Any, config: DataConfig) -> None:
        self.tokenizer = tokenizer
        self.loss_on = config.loss_on
        self.separator = config.separator
        own = tokenizer.chat_template
        self.template = use_chat_template(tokenizer, config.chat_template)
        self.replaces_own = bool(own) and own != tokenizer.chat_template
        self.recorded = format_in(tokenizer.chat_template)
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
        self._jinja = Template(tokenizer, self.template)
        self._probe()

    def _probe(self) -> None:
        """Read the template's properties from a conversation of one question and one answer."""
        mark = MARKS[0]
        asked = [{"role": "user", "content": "a"}]
        answer = {"role": "assistant", "content": mark}
        try:
            history = self._jinja.apply(asked, None, False)
            prompt = self._jinja.apply(asked, None, True)
            full = self._jinja.apply([*asked, answer], None, False)
        except RowError as error:
            raise DataError(f"{error}, in a chat of one question and one answer") from None
        header, found, tail = full.partition(mark)
        if not found:
            raise DataError(
                f"the chat template ({self.template}) does not show the assistant's content. "
                "Choose another by the setting data.chat_template."
            )
        gap = header[len(history) :] if prompt == history else ""
        no_prompt = header.startswith(history) and bool(gap.strip())
        self.prompt_differs = not (header.startswith(prompt) or no_prompt)
        closing = self.special.search(tail)
        self._adds_eos = closing is None
        self.end = tail[: closing.end()] if closing else tail.rstrip()
        direct = prompt == header or no_prompt
        self._turns = TurnFinder(self._jinja, self.special, self.end, direct, no_prompt)
        self._no_prompt = no_prompt
        self.ends = self._different_ends(asked, answer)
        self.end_ids = self._ids_of_ends(closing.group() if closing else None)
        self.dated = self._jinja.dated(asked, mark)
        names = dict.fromkeys(self.special.findall(full))
        ids = {name: self.tokenizer.convert_tokens_to_ids(name) for name in names}
        self.markers_used = {name: i for name, i in ids.items() if i is not None}

    def _different_ends(
        self, asked: list[dict[str, Any]], answer: dict[str, Any]
    ) -> tuple[str, str] | None:
        """The markers that close a first and a last answer, if they differ."""
        try:
            text = self._jinja.apply([*asked, answer, *asked, answer], None, False)
        except RowError:
            return None  # the template takes one question and one answer only
        pieces = text.split(answer["content"])
        if len(pieces) != 3 or (self.end and pieces[1].startswith(self.end)):
            return None
        closing = self.special.match(pieces[1].lstrip())
        # A marker that also opens the first question does not close an answer.
        opens = closing is not None and pieces[0].lstrip().startswith(closing.group())
        first = closing.group() if closing and not opens else ""
        last = str(self.tokenizer.eos_token) if self._adds_eos else self.end
        return None if first == last else (first, last)

    def _ids_of_ends(self, closing: str | None) -> list[int]:
        names = {closing} if closing else set()
        if self.ends and self.ends[0]:
            names.add(self.ends[0])
        ids = {self.tokenizer.eos_token_id, *map(self.tokenizer.convert_tokens_to_ids, names)}
        return sorted(i for i in ids if i is not None)

    @property
    def trained_prompt(self) -> PromptFormat:
        """The format of a prompt that is a string: the recorded one, or that of the settings."""
        return self.recorded or PromptFormat("plain", self.separator)

    def render(self, row: Row) -> Rendered:
        """The row as text, and which parts of it are learned.

        Raises:
            RowError: the template refuses the conversation, or loses a turn of it.
        """
        eos = str(self.tokenizer.eos_token)
        if row.kind == "chat":
            return self._render_chat(row)
        if row.kind == "text":
            ends = row.completion.endswith(eos)
            span = ((0, len(row.completion)),)
            return Rendered(row.completion, (), span, bos=True, eos=not ends, eos_learned=True)
        start = row.prompt + self.separator if row.prompt else ""
        text = start + row.completion
        turn = ((len(start), len(text)),)
        learned = ((0, len(text)),) if self.loss_on == "all" else turn
        ends = row.completion.endswith(eos)
        return Rendered(text, turn, learned, bos=True, eos=not ends, eos_learned=True)

    def _render_chat(self, row: Row) -> Rendered:
        messages = list(row.messages)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers and self.loss_on != "all":
            roles = ", ".join(message["role"] for message in messages)
            raise RowError(f"the chat has no assistant message to learn from (roles: {roles})")
        messages = self._jinja.fitting(messages, row.tools)
        located = self._turns.locate(messages, row.tools, generation=False)
        text, turns = located.text, located.turns
        dropped = dropped_parts(messages, row.tools, located)
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
        shown = Rendered(
            text, tuple(turns), learned, eos=eos, eos_learned=eos and wanted[-1], dropped=dropped
        )
        return self._without_bos(shown)

    def _without_bos(self, rendered: Rendered) -> Rendered:
        """Remove the begin token from the template's text; the encoder adds it as in training."""
        bos = self.tokenizer.bos_token
        if self.recorded is None or not bos or not rendered.text.startswith(bos):
            return rendered
        n = len(bos)

        def moved(spans: tuple[Span, ...]) -> tuple[Span, ...]:
            return tuple((max(0, start - n), end - n) for start, end in spans)

        return dataclasses.replace(
            rendered,
            text=rendered.text[n:],
            turns=moved(rendered.turns),
            learned=moved(rendered.learned),
            bos=True,
        )

    def prompt(self, given: str | Sequence[dict[str, Any]], tools: Any = None) -> Rendered:
        """The text before the model's answer: exactly the beginning of a training row.

        Args:
            given: messages, or a prompt that is rendered like ``prompt``/``completion`` rows.
            tools: JSON schemas of functions.
        """
        if isinstance(given, str):
            form = self.trained_prompt
            return Rendered(given + form.separator if given else "", bos=True)
        messages = list(parse_messages(list(given), "messages")[0])
        messages = self._jinja.fitting(messages, tools)
        if not self._no_prompt:
            located = self._turns.locate(messages, tools, generation=True)
            return self._without_bos(Rendered(located.text, tuple(located.turns)))
        answer = {"role": "assistant", "content": MARKS[0]}
        located = self._turns.locate([*messages, answer], tools, generation=False)
        start = located.turns[-1][0]
        return self._without_bos(Rendered(located.text[:start], tuple(located.turns[:-1])))

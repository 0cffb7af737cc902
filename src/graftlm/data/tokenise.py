"""Text to tokens, with masks that are exact to the character.

A row is tokenised once, as a whole, and the tokenizer's offsets give the positions of its spans. If
a token would cross the edge of a turn, the text is cut there and the parts are tokenised
separately. Generation starts from a prompt that ends at that edge, where such a token cannot occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from graftlm.config import DataConfig
from graftlm.data.chat import ChatFormat, Rendered
from graftlm.data.example import Example
from graftlm.data.formats import Row
from graftlm.data.new_tokens import add_tokens
from graftlm.errors import DataError

__all__ = ["Encoder", "render_prompt", "stop_tokens"]

_ANCHORS = ("\n", ".", "a", "0")
"""Texts before a later part, so that the tokenizer does not treat it as the start of a text."""

_CONTEXT = 32
_REMEMBERED = 10_000


class Encoder:
    """Tokenises rows for one tokenizer.

    Attributes:
        format: how rows are rendered.
        tokenizer: the model's.
        head: the tokens before every text, usually the begin token; may be empty.
    """

    def __init__(self, tokenizer: Any, config: DataConfig) -> None:
        add_tokens(tokenizer, config.new_tokens)
        self.format = ChatFormat(tokenizer, config)
        self.tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        inside = tokenizer("a", add_special_tokens=False).input_ids
        full = list(tokenizer("a").input_ids)
        at = next((i for i in range(len(full)) if full[i : i + len(inside)] == inside), 0)
        self.head = full[:at]
        self._eos = tokenizer.eos_token_id
        self._known: dict[tuple[str, str], bool] = {}
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            probe = self._backend.encode("a b", add_special_tokens=False)
            spaces = probe.offsets and probe.offsets[-1] == (2, 3) and len(probe.ids) == 2
            # Some tokenizers report " b" at the "b": their offsets hide a space before the edge.
            self._trims = bool(spaces)

    def __call__(self, rendered: Sequence[Rendered]) -> list[Example]:
        """One example per row, at full length."""
        return self.mask(rendered, self.encode(rendered))

    def encode(self, rendered: Sequence[Rendered]) -> Sequence[Any]:
        """The tokenizer's encodings; this runs on all cores, without Python's lock."""
        if self._backend is None:
            return [None] * len(rendered)
        texts = [row.text for row in rendered]
        encodings: list[Any] = self._backend.encode_batch(texts, add_special_tokens=False)
        return encodings

    def mask(self, rendered: Sequence[Rendered], encodings: Sequence[Any]) -> list[Example]:
        """Examples from encodings: the edges of each turn, and the learned tokens."""
        return [self._example(row, enc) for row, enc in zip(rendered, encodings, strict=True)]

    def rows(self, rows: Sequence[Row]) -> list[Example]:
        """Render and tokenise."""
        return self([self.format.render(row) for row in rows])

    def _example(self, row: Rendered, encoding: Any) -> Example:
        edges = sorted({edge for turn in (*row.turns, *row.learned) for edge in turn})
        ids, at = self._positions(row.text, edges, encoding)
        # Exactly one begin token: the text may already begin with it.
        head = self.head if row.bos and ids[: len(self.head)] != self.head else []
        tail = [self._eos] if row.eos else []
        supervised = np.zeros(len(head) + len(ids) + len(tail), dtype=np.bool_)
        for start, end in row.learned:
            supervised[len(head) + at[start] : len(head) + at[end]] = True
        if tail:
            supervised[-1] = row.eos_learned
        return Example(np.array([*head, *ids, *tail], dtype=np.int32), supervised)

    def _positions(
        self, text: str, edges: list[int], encoding: Any, skip: tuple[int, int] = (0, 0)
    ) -> tuple[list[int], dict[int, int]]:
        """Token ids of a text, and for each edge the index of the first token at or after it.

        Args:
            text: the text.
            edges: positions in it, sorted.
            encoding: the text's encoding, with ``skip`` (tokens, characters) of an anchor in front.
            skip: see ``encoding``.
        """
        if encoding is None:
            cut = [edge for edge in edges if 0 < edge < len(text)]
            at: dict[int, int] = {}
        else:
            at, cut = self._look_up(text, edges, encoding, skip)
        if cut:
            return self._apart(text, edges, cut)
        if encoding is None:
            ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        else:
            ids = encoding.ids[skip[0] :]
        return ids, {edge: at.get(edge, 0 if edge <= 0 else len(ids)) for edge in edges}

    def _apart(
        self, text: str, edges: list[int], cut: list[int]
    ) -> tuple[list[int], dict[int, int]]:
        """Tokenise the parts between cuts one by one."""
        ids: list[int] = []
        at: dict[int, int] = {}
        bounds = [0, *cut, len(text)]
        for start, end in pairwise(bounds):
            inner = [edge - start for edge in edges if start <= edge <= end]
            encoding, skip = self._encode_part(text[start:end], later=start > 0)
            part, found = self._positions(text[start:end], inner, encoding, skip)
            for edge, index in found.items():
                at[edge + start] = index + len(ids)
            ids.extend(part)
        return ids, at

    def _encode_part(self, text: str, later: bool) -> tuple[Any, tuple[int, int]]:
        """Encode a part; a part that is not the first gets an anchor before it."""
        if self._backend is None:
            return None, (0, 0)
        for anchor in _ANCHORS if later and text else ():
            alone = self._backend.encode(anchor, add_special_tokens=False).ids
            encoding = self._backend.encode(anchor + text, add_special_tokens=False)
            if encoding.ids[: len(alone)] == alone:
                return encoding, (len(alone), len(anchor))
        return self._backend.encode(text, add_special_tokens=False), (0, 0)

    def _settled(self, text: str, edge: int) -> bool:
        r"""Whether the text before an edge has the same tokens without the text after it.

        No token crosses the edge, so only the splitting into words can still look ahead. Such rules
        (GPT-2's ``\s+(?!\S)``) look at runs of spaces.
        """
        if not text[edge - 1].isspace():
            return True
        if self._trims:
            return False
        if not text[max(0, edge - 2)].isspace():
            return True
        before, after = text[max(0, edge - _CONTEXT) : edge], text[edge]
        known = self._known.get((before, after))
        if known is None:
            alone = self._backend.encode(before, add_special_tokens=False).ids
            both = self._backend.encode(before + after, add_special_tokens=False).ids
            known = both[: len(alone)] == alone
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            self._known[before, after] = known
        return known

    def _look_up(
        self, text: str, edges: list[int], encoding: Any, skip: tuple[int, int]
    ) -> tuple[dict[int, int], list[int]]:
        """Edges between two tokens, and edges that a token crosses."""
        at: dict[int, int] = {}
        cut: list[int] = []
        tokens, characters = skip
        for edge in edges:
            if edge <= 0 or edge >= len(text):
                continue
            token = encoding.char_to_token(edge + characters)
            if token is None:  # the tokenizer dropped this character
                token = _first_after(encoding, edge + characters)
                straddles = False
            else:
                straddles = encoding.token_to_chars(token)[0] < edge + characters
            if straddles and encoding.ids[token] in self._special:
                token += 1  # a marker that includes adjacent spaces, e.g. Phi-3's <|end|>
                straddles = text[edge - 1].isspace() or not text[edge].isspace()
            if straddles or not self._settled(text, edge):
                cut.append(edge)
            else:
                at[edge] = token - tokens
        return at, cut


def _first_after(encoding: Any, position: int) -> int:
    starts = [start for start, _ in encoding.offsets]
    return next((i for i, start in enumerate(starts) if start >= position), len(starts))


def _require_unicode(given: Any) -> None:
    """Refuse a prompt or messages with half of a surrogate pair, as a broken terminal sends."""
    messages = given if isinstance(given, list | tuple) else [{"content": given}]
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            try:
                content.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"the prompt is not valid Unicode at character {error.start} (half of a "
                    "surrogate pair). Send it as UTF-8."
                ) from error


def render_prompt(
    given: str | Row | Sequence[dict[str, Any]],
    tokenizer: Any,
    config: DataConfig | None = None,
    tools: Any = None,
) -> list[int]:
    """The token ids of a prompt, the same as in training to the last token.

    Args:
        given: messages; or a row, of which everything before its last answer is used; or a prompt,
            which is rendered like ``prompt``/``completion`` rows or in the form that the
            tokenizer's template records.
        tokenizer: the model's.
        config: the settings the model was trained with, for its chat template.
        tools: JSON schemas of functions the model may call.

    Raises:
        DataError: the prompt is not valid Unicode.
    """
    _require_unicode(given)
    encoder = Encoder(tokenizer, config or DataConfig())
    if isinstance(given, Row):
        tools = given.tools
        messages = list(given.messages)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        given = messages if given.kind == "chat" else given.prompt
    [example] = encoder([encoder.format.prompt(given, tools)])
    return [int(token) for token in example.input_ids]


def stop_tokens(tokenizer: Any, config: DataConfig | None = None) -> list[int]:
    """Ids of the tokens that end an answer: the tokenizer's end token and its chat template's."""
    return ChatFormat(tokenizer, config or DataConfig()).end_ids

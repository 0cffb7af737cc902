r"""How a model was trained to be asked: by chat turns, by plain text, or by text that goes on.

A model tuned on rows of prompt and completion answers well to a prompt as it stood in those rows,
and badly to the same words inside chat turns. What it was trained with is therefore written into
the chat template that is saved with it:

- rows that were chats leave the model's own template, which is how the model was asked;
- rows that were plain leave a template that writes plain text and begins with a comment,
  ``{#- graftlm: {"kind": "plain", "separator": "\n"} -#}``, from which `format_in` reads the
  format back.

Every program that renders chat templates then asks in the trained form, as graftlm does.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from graftlm.config import DataConfig
from graftlm.data.templates import plain_template

__all__ = ["PromptFormat", "format_in", "format_of", "with_format", "written_with"]

_MARK = re.compile(r"\{#- graftlm: (\{.*?\}) -#\}")


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How a prompt stands before its answer.

    Attributes:
        kind: ``chat``: as a turn of the chat template; ``plain``: the prompt, then the separator;
            ``text``: as it is, to be continued.
        separator: of the kind ``plain``.
    """

    kind: Literal["chat", "plain", "text"]
    separator: str = ""

    def __str__(self) -> str:
        if self.kind == "plain":
            return f"the prompt as plain text, then {self.separator!r}"
        return "the text itself" if self.kind == "text" else "a turn of the chat template"


def format_of(kinds: Counter[str], config: DataConfig) -> PromptFormat:
    """The format of rows of these kinds; where kinds are mixed, that of the chats, else plain."""
    if kinds["chat"] or not kinds:
        return PromptFormat("chat")
    return PromptFormat("plain", config.separator) if kinds["completion"] else PromptFormat("text")


def format_in(template: Any) -> PromptFormat | None:
    """The plain format that a chat template records; ``None`` for any other template."""
    found = _MARK.match(template) if isinstance(template, str) else None
    return None if found is None else PromptFormat(**json.loads(found[1]))


def with_format(tokenizer: Any, form: PromptFormat) -> Any:
    """The tokenizer as it is saved with a model that was trained in ``form``.

    Returns:
        A copy with the template that records the format, or for chats the tokenizer itself, which
        holds the template it was used with.
    """
    if form.kind == "chat":
        return tokenizer
    saved = copy.copy(tokenizer)
    saved.chat_template = written_with(form, tokenizer)
    return saved


def written_with(form: PromptFormat, tokenizer: Any) -> str:
    """The template that writes plain text in this form and records it."""
    record = json.dumps({"kind": form.kind, "separator": form.separator})
    # The comment must not be closed by what is in it.
    record = record.replace("#", r"\u0023").replace("-", r"\u002d")
    return "{#- graftlm: " + record + " -#}" + plain_template(form.separator, tokenizer)

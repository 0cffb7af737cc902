r"""The prompt form of a trained model: chat turns, plain text, or text to continue.

A model that was trained on rows of prompt and completion answers well to a prompt in the form of
those rows, and badly to the same words inside chat turns. Its form is therefore recorded in the
chat template that is saved with it:

- for chats it is the template that the rows were rendered with;
- for plain rows it is a template that writes plain text and begins with a comment,
  ``{#- graftlm: {"kind": "plain", "separator": "\n"} -#}``, from which `format_in` reads the
  format back.

Every program that renders chat templates then uses the trained form, as graftlm does.
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
    """The form of a prompt before its answer.

    Attributes:
        kind: ``chat``: a turn of the chat template; ``plain``: the prompt, then the separator;
            ``text``: the prompt alone, to be continued.
        separator: the separator of the kind ``plain``.
    """

    kind: Literal["chat", "plain", "text"]
    separator: str = ""

    def __str__(self) -> str:
        if self.kind == "plain":
            return f"the prompt as plain text, then {self.separator!r}"
        return "the text itself" if self.kind == "text" else "a turn of the chat template"


def format_of(kinds: Counter[str], config: DataConfig) -> PromptFormat:
    """The format of rows of these kinds; for mixed kinds ``chat`` if among them, else plain."""
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
        A copy with the template that records the format; for chats the tokenizer itself, which has
        the template of the training.
    """
    if form.kind == "chat":
        return tokenizer
    saved = copy.copy(tokenizer)
    saved.chat_template = written_with(form, tokenizer)
    return saved


def written_with(form: PromptFormat, tokenizer: Any) -> str:
    """The template that writes plain text in this form and records it."""
    record = json.dumps({"kind": form.kind, "separator": form.separator})
    # The content of the comment must not close it.
    record = record.replace("#", r"\u0023").replace("-", r"\u002d")
    return "{#- graftlm: " + record + " -#}" + plain_template(form.separator, tokenizer)

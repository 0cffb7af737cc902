"""Renders messages by a tokenizer's chat template, in the form that the template needs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jinja2

from graftlm.data.messages import Arguments, RowError
from graftlm.errors import DataError
from graftlm.system.time_limit import TookTooLongError, time_limit

__all__ = ["Template", "in_bounds"]

SECONDS = 30.0
"""The longest row that is read takes about one second."""


@contextlib.contextmanager
def in_bounds(name: str) -> Iterator[None]:
    """Render a template inside, in any thread.

    Args:
        name: the template's name in messages.

    Raises:
        DataError: it takes too long, or more memory than there is.
    """
    try:
        with time_limit(SECONDS):
            yield
    except (TookTooLongError, MemoryError) as error:
        what = "more memory than there is"
        if isinstance(error, TookTooLongError):
            what = f"over {SECONDS:.0f} s"
        raise DataError(
            f"the chat template ({name}) takes {what} for one row: it has a "
            "loop or a text without a sensible end. Take another: --set "
            "data.chat_template=chatml"
        ) from error


class Template:
    """The chat template that is used.

    Args:
        tokenizer: has it as its ``chat_template``.
        name: its name in messages.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer = tokenizer
        self.name = name

    def apply(
        self, messages: list[dict[str, Any]], tools: Any, generation: bool, **variables: Any
    ) -> str:
        """Render.

        Args:
            messages: the conversation.
            tools: JSON schemas of functions.
            generation: append the generation prompt.
            variables: additional variables of the template.

        Raises:
            RowError: the template refuses, with its reason.
        """
        try:
            with in_bounds(self.name):
                text: str = self.tokenizer.apply_chat_template(
                    messages,
                    tools=tools,
                    add_generation_prompt=generation,
                    tokenize=False,
                    **variables,
                )
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise RowError(f"the chat template ({self.name}) refuses: {error}") from error
        return text

    def fitting(self, messages: list[dict[str, Any]], tools: Any) -> list[dict[str, Any]]:
        """The messages, with the arguments of tool calls in the form that the template supports.

        Most templates expect objects and write them as JSON. Some concatenate strings and fail on
        an object, or write it in Python's form (``{'n': 4}``). They get the row's own JSON text.
        """
        if not any(message.get("tool_calls") for message in messages):
            return messages
        as_text = [_with_text_arguments(message) for message in messages]
        try:
            text = self.apply(messages, tools, False)
        except RowError:
            try:
                self.apply(as_text, tools, False)
            except RowError:
                return messages  # rendering them then raises the reason
            return as_text
        given = [call["function"]["arguments"] for m in messages for call in _calls(m)]
        python_form = any(arguments and str(arguments) in text for arguments in given)
        return as_text if python_form else messages

    def dated(self, messages: list[dict[str, Any]], mark: str) -> bool:
        """Whether the template prints the date of the day on which it renders."""
        try:
            return mark in self.apply(messages, None, True, strftime_now=lambda *_: mark)
        except RowError:
            return True  # it does arithmetic with the date


def _calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    return message.get("tool_calls") or []


def _with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    if not _calls(message):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _text(call["function"])}}
        for call in _calls(message)
    ]
    return {**message, "tool_calls": calls}


def _text(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    if isinstance(arguments, Arguments):
        return arguments.text
    return json.dumps(arguments, ensure_ascii=False)

r"""Answers that are tool calls and nothing else (`tool_choice`), in the chat template's form.

    Hermes, Qwen   <tool_call>\n{"name": "book", "arguments": {"for": 2}}\n</tool_call>, and more
    Llama 3        {"name": "book", "parameters": {"for": 2}}

The grammar is Lark as llguidance reads it; the arguments of each function fit its own schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graftlm.errors import DataError
from graftlm.serve.structured import WRITTEN, checked
from graftlm.serve.tool_calls import CLOSE, OPEN, TaggedCalls, reader_for

__all__ = ["grammar_of_calls"]


def grammar_of_calls(
    template: Any,
    tools: Sequence[Mapping[str, Any]],
    name: str | None,
    term: Callable[[str], str],
    *,
    several: bool,
) -> str:
    """The grammar of answers that call one of the functions.

    Args:
        template: the chat template, which tells the form.
        tools: the functions, as OpenAI's JSON objects.
        name: the function to call, once; ``None``: any.
        term: how a grammar writes a text that may be a token of its own.
        several: whether an answer may call more than once, where the form allows it.

    Raises:
        DataError: the form is not known, there is no such function, or a schema cannot be followed.
        ResourceError: llguidance is not installed.
    """
    functions = [tool.get("function", tool) for tool in tools]
    reader = reader_for(template, tools)
    if reader is None:
        raise DataError(
            "tool_choice: the model's chat template has no form of tool calls that is known here "
            "(Hermes and Qwen, Llama 3), so no call can be forced; leave tool_choice out"
        )
    if not all(isinstance(f, Mapping) and isinstance(f.get("name"), str) for f in functions):
        raise DataError("tools: each is a function with a name")
    chosen = [f for f in functions if name in (None, f["name"])]
    if not chosen:
        known = ", ".join(f["name"] for f in functions)
        raise DataError(f"tool_choice: there is no tool {name!r}; there are {known}")
    tagged = reader is TaggedCalls
    lines = []
    for number, function in enumerate(chosen):
        called = json.dumps(function["name"], ensure_ascii=False)
        begin = f'{{"name": {called}, "{"arguments" if tagged else "parameters"}": '
        schema = {**_schema(function), "x-guidance": WRITTEN}
        lines.append(f'call_{number}: {json.dumps(begin)} arguments_{number} "}}"')
        lines.append(f"arguments_{number}: %json {json.dumps(schema)}")
    lines.append("call: " + " | ".join(f"call_{number}" for number in range(len(chosen))))
    if tagged:
        lines.append(f'tagged: {term(OPEN)} "\\n" call "\\n" {term(CLOSE)}')
        start = 'tagged ("\\n" tagged)*' if several and name is None else "tagged"
    else:
        start = "call"
    return checked("\n".join([f"start: {start}", *lines]))


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object."""
    schema = function.get("parameters") or {}
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise DataError(f"tools: the parameters of {function['name']!r} are no object")
    return {**schema, "type": "object"}

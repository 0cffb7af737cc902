"""What a request says of the form of its answer: a JSON schema, or a call of a tool."""

from __future__ import annotations

from collections.abc import Sequence

from graftlm.errors import GraftLMError
from graftlm.models.decoding.constraint import Constraint
from graftlm.serve.forced_calls import grammar_of_calls
from graftlm.serve.requests import ChatRequest, CompletionRequest, RefusedError
from graftlm.serve.structured import grammar_of
from graftlm.serve.voices import Voice

__all__ = ["forms_asked"]


def forms_asked(
    asked: ChatRequest | CompletionRequest, voice: Voice, count: int
) -> Sequence[Constraint | None]:
    """What keeps each of ``count`` answers to the form that is asked for, if there is one.

    Raises:
        RefusedError: the schema, the template or the tokenizer does not allow it.
    """
    at = "response_format"
    schema = asked.schema_of_answer
    if schema is not None and isinstance(asked, ChatRequest) and asked.offered:
        raise RefusedError(400, "response_format: not together with tools", parameter=at)
    try:
        grammar = None if schema is None else grammar_of(schema)
        if isinstance(asked, ChatRequest) and asked.must_call:
            at, several = "tool_choice", asked.parallel_tool_calls is not False
            grammar = grammar_of_calls(
                voice.template, asked.tools or [], asked.to_call, voice.term, several=several
            )
        return [None if grammar is None else voice.constraint(grammar) for _ in range(count)]
    except GraftLMError as error:
        raise RefusedError(400, str(error), parameter=at) from error

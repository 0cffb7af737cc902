"""What a client may ask, and how a refusal looks.

A field that would change the answer and is not supported is refused by name, never ignored. Fields
that only describe the request (`user`, `metadata`, …) are accepted.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graftlm.models.decoding.choice import Sampling

__all__ = ["ChatRequest", "CompletionRequest", "RefusedError", "parsed"]

Stop = str | list[str] | None


class RefusedError(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP's number.
        message: what was wrong and what is expected.
        kind: OpenAI's class of error.
        parameter: the field at fault.
        code: OpenAI's name of the error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        parameter: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.parameter, self.code = parameter, code

    def tree(self) -> dict[str, Any]:
        """OpenAI's JSON object for it."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.parameter,
                "code": self.code,
            }
        }


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False


class _JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    description: str | None = None
    tree: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class _Format(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class _Request(BaseModel):
    """The fields that both endpoints take."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: Stop = Field(default=None)
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    # With any other value the answer would be another.
    n: Literal[1] | None = 1
    logprobs: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    response_format: _Format | None = None
    # These describe the request and change nothing.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @property
    def longest(self) -> int | None:
        """The longest answer that is wanted, in tokens."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer.

        Raises:
            RefusedError: too many or too long.
        """
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(given) > 16 or any(len(stop) > 1000 for stop in given):
            raise RefusedError(400, "stop: at most 16 texts of 1,000 characters", parameter="stop")
        return tuple(given)

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must fit; ``None``: it is free.

        Raises:
            RefusedError: it is missing.
        """
        asked = self.response_format
        if asked is None or asked.type == "text":
            return None
        if asked.type == "json_object":
            return {"type": "object"}
        if asked.json_schema is None:
            raise RefusedError(
                400, "response_format: json_schema is missing", parameter="response_format"
            )
        return asked.json_schema.tree

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen; without a seed, by a fresh one. OpenAI's temperature is 1."""
        return Sampling(
            1.0 if self.temperature is None else self.temperature,
            1.0 if self.top_p is None else self.top_p,
            secrets.randbits(62) if self.seed is None else self.seed,
        )


class _Named(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str


class _NamedTool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["function"]
    function: _Named


class ChatRequest(_Request):
    """`/v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none", "required"] | _NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @property
    def longest(self) -> int | None:
        """The longest answer that is wanted, in tokens."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools that the template is given."""
        return None if self.tool_choice == "none" else self.tools or None

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call.

        Raises:
            RefusedError: there is no tool.
        """
        must = self.tool_choice not in (None, "auto", "none")
        if must and not self.tools:
            raise RefusedError(400, "tool_choice: there are no tools", parameter="tool_choice")
        return must

    @property
    def to_call(self) -> str | None:
        """The function that the answer has to call; ``None``: any."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, _NamedTool) else None


class CompletionRequest(_Request):
    """`/v1/completions`."""

    prompt: str | list[int] | list[str]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None


def parsed(kind: type[ChatRequest] | type[CompletionRequest], body: bytes) -> Any:
    """The request in ``body``.

    Raises:
        RefusedError: it is no JSON, or a field is wrong.
    """
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise RefusedError(400, f"the body is {type(tree).__name__}, expected an object")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][:2]))
        known = field.partition(".")[0] in kind.model_fields
        said = first["msg"] if known else "this field is not supported; leave it out"
        raise RefusedError(400, f"{field}: {said}", parameter=field) from error

"""`response_format`, asked by the `openai` client; the answers are checked by pydantic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from graftlm.exporting import export
from graftlm.serve import structured
from tests.exporting.test_gguf import adapter_on, saved_base
from tests.oracles.merging_tokenizer import bpe_tokenizer
from tests.serve.conftest import TEMPLATE


class Size(str, Enum):
    SMALL = "small"
    LARGE = "large"


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    food: Size
    paid: bool
    tables: list[Size] = pydantic.Field(min_length=1, max_length=2)


def as_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "order", "schema": schema}}


FORMAT = as_format(Order.model_json_schema())


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


def ask(client: openai.OpenAI, text: str, **more: Any) -> Any:
    return client.chat.completions.create(
        model=more.pop("model", "one"),
        messages=[{"role": "user", "content": text}],
        **({"max_tokens": 120, "temperature": 0} | more),
    )


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_fits_its_schema(client: openai.OpenAI, temperature: float) -> None:
    """The oracle: pydantic, from whose model the schema is. The model itself says noise."""
    for seed in range(4):
        found = ask(client, "hi", response_format=FORMAT, temperature=temperature, seed=seed)
        assert found.choices[0].finish_reason == "stop"
        Order.model_validate_json(found.choices[0].message.content)


def test_the_client_parses_what_it_asked_for(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model="two",
        messages=[{"role": "user", "content": "hi"}],
        response_format=Order,
        max_tokens=120,
    )
    assert isinstance(found.choices[0].message.parsed, Order)


def test_rows_with_and_without_a_schema_do_not_disturb_each_other(client: openai.OpenAI) -> None:
    free = ask(client, "free", max_tokens=20).choices[0].message.content
    form = ask(client, "hi", response_format=FORMAT).choices[0].message.content
    asks: list[dict[str, Any]] = [{"text": "free", "max_tokens": 20}]
    asks += [{"text": "hi", "response_format": FORMAT}]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda given: ask(client, **given), asks * 4))
    texts = [one.choices[0].message.content for one in found]
    assert texts == [free, form] * 4


def test_a_stream_and_a_text_completion_keep_to_the_schema(client: openai.OpenAI) -> None:
    whole = ask(client, "hi", response_format=FORMAT).choices[0].message.content
    pieces = ask(client, "hi", response_format=FORMAT, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole
    text = client.completions.create(
        model="one", prompt="hi", max_tokens=120, extra_body={"response_format": FORMAT}
    )
    Order.model_validate_json(text.choices[0].text)


def test_any_object_begins_as_one(client: openai.OpenAI) -> None:
    found = ask(client, "hi", response_format={"type": "json_object"}, max_tokens=20)
    assert found.choices[0].message.content.startswith("{")


def test_a_schema_that_cannot_be_followed_is_refused(client: openai.OpenAI) -> None:
    for schema in ({"type": "nonsense"}, {"type": "object", "not": {"required": ["a"]}}):
        with pytest.raises(openai.BadRequestError, match="the JSON schema cannot be followed"):
            ask(client, "hi", response_format=as_format(schema))


def test_a_missing_library_is_named(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(openai.BadRequestError, match=r"pip install 'graftlm\[serve\]'"):
        ask(client, "hi", response_format=FORMAT)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_llama_cpp_keeps_to_the_schema(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from graftlm.models.decoding.choice import Sampling
    from graftlm.models.decoding.row import Ask
    from graftlm.models.llama_cpp import LlamaCpp
    from graftlm.serve.llama import LlamaVoice, LlamaWriter

    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = TEMPLATE
    base = saved_base(tmp_path / "base", "llama", tokenizer)
    file = tmp_path / "m.gguf"
    export(adapter_on(base, tmp_path / "adapter"), "gguf", file)
    model = LlamaCpp(file, context=256)
    voice, writer = LlamaVoice(model), LlamaWriter(model)
    for temperature in (0.0, 1.5):
        form = voice.constraint(structured.grammar_of(Order.model_json_schema()))
        ids = voice.chat([{"role": "user", "content": "hi"}], None)
        row = writer.add(Ask(ids, 150, Sampling(temperature, seed=1), voice.stop, constraint=form))
        while row.reason is None:
            writer.step()
        assert row.reason == "stop", row.error
        Order.model_validate_json(row.text)
    writer.close()


def test_the_schema_is_json_as_json_dumps_writes_it() -> None:
    """So that white space cannot go on for ever."""
    from llguidance import LLMatcher, LLTokenizer

    words = LLTokenizer("byte")
    for text, fits in (('{"a": 1, "b": 2}', True), ('{"a":1}', False), ('{\n"a": 1}', False)):
        schema = {"type": "object", "additionalProperties": {"type": "integer"}}
        matcher = LLMatcher(words, structured.grammar_of(schema))
        read = matcher.try_consume_tokens(list(text.encode()))
        assert (read == len(text)) is fits
        assert json.loads(text)

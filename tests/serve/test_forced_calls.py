"""`tool_choice` that forces a call, asked by the `openai` client; pydantic checks the arguments."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from tokenizers import AddedToken

from graftlm.exporting import export
from graftlm.serve import structured
from graftlm.serve.forced_calls import grammar_of_calls
from graftlm.serve.tool_calls import TaggedCalls
from graftlm.serve.voices import TokenizerVoice
from tests.exporting.test_gguf import adapter_on, saved_base
from tests.oracles.byte_tokenizer import byte_tokenizer
from tests.oracles.merging_tokenizer import bpe_tokenizer
from tests.serve.conftest import TEMPLATE, started
from tests.serve.test_tool_calls import HERMES, LLAMA


class Size(str, Enum):
    SMALL = "small"
    LARGE = "large"


class Table(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    people: int = pydantic.Field(ge=0, le=99)
    size: Size


class Book(pydantic.BaseModel):
    """Book a table."""

    model_config = pydantic.ConfigDict(extra="forbid")
    table: Table
    outside: bool


class Cancel(pydantic.BaseModel):
    """Cancel a booking."""

    model_config = pydantic.ConfigDict(extra="forbid")
    number: int = pydantic.Field(ge=0, le=999)


KINDS: dict[str, type[pydantic.BaseModel]] = {"Book": Book, "Cancel": Cancel}
TOOLS: list[Any] = [openai.pydantic_function_tool(kind) for kind in KINDS.values()]
NAMED: Any = {"type": "function", "function": {"name": "Cancel"}}


@contextlib.contextmanager
def serving(template: str, *tokens: str) -> Iterator[openai.OpenAI]:
    """A random model over bytes, with these tokens of their own, that says noise if it may."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from graftlm.models.decoding.decoder import Decoder

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8192, eos_token_id=257,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    voices = {"m": TokenizerVoice.of(tokenizer, None)}
    with (
        started(Decoder(model, tokenizer), voices) as port,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
        ) as client,
    ):
        yield client


def ask(client: openai.OpenAI, choice: Any, **more: Any) -> Any:
    given = {"model": "m", "messages": [{"role": "user", "content": "two"}], "tools": TOOLS,
             "max_tokens": 300, "parallel_tool_calls": False, "tool_choice": choice}  # fmt: skip
    return client.chat.completions.create(**(given | more))


FORMS = {
    "hermes": (HERMES,),
    "hermes, the tags are tokens": (HERMES, "<tool_call>", "</tool_call>"),
    "llama": (LLAMA,),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_a_call_that_fits_the_schema(form: str) -> None:
    with serving(*FORMS[form]) as client:
        names = set()
        for choice in ("required", NAMED):
            for temperature, seed in ((0, 0), (1.5, 1), (1.5, 2), (1.5, 3)):
                found = ask(client, choice, temperature=temperature, seed=seed).choices[0]
                assert found.finish_reason == "tool_calls"
                assert found.message.content is None
                [call] = found.message.tool_calls
                KINDS[call.function.name].model_validate_json(call.function.arguments)
                names.add(call.function.name)
                assert choice == "required" or call.function.name == "Cancel"
                same = [
                    chunk.choices[0]
                    for chunk in ask(
                        client, choice, temperature=temperature, seed=seed, stream=True
                    )
                ]
                [streamed] = [c for one in same for c in one.delta.tool_calls or []]
                assert streamed.function.arguments == call.function.arguments
                assert same[-1].finish_reason == "tool_calls"
        assert "Cancel" in names
        free = ask(client, "auto", temperature=0).choices[0]
        assert free.message.tool_calls is None  # the model itself calls nothing


def test_several_calls_where_the_form_allows_them() -> None:
    from llguidance import LLMatcher, LLTokenizer

    one = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'
    tools = [{"function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}}]
    words = LLTokenizer("byte")

    def fits(text: str, name: str | None, several: bool, template: str = HERMES) -> bool:
        grammar = grammar_of_calls(template, tools, name, json.dumps, several=several)
        matcher = LLMatcher(words, grammar)
        read = matcher.try_consume_tokens(list(text.encode()))
        return read == len(text) and bool(matcher.is_accepting())

    assert fits(one, None, True)
    assert fits(f"{one}\n{one}", None, True)
    assert not fits(f"{one}\n{one}", None, False)
    assert not fits(f"{one}\n{one}", "f", True)  # a named function is called once
    assert not fits(f"Sure. {one}", None, True)
    bare = '{"name": "f", "parameters": {"n": 1}}'
    assert fits(bare, None, True, LLAMA)
    assert not fits(f"{bare}; {bare}", None, True, LLAMA)


def test_what_cannot_be_forced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def schema(tree: Any) -> list[Any]:
        return [{"type": "function", "function": {"name": "f", "parameters": tree}}]

    cases: list[tuple[Any, Any, str]] = [
        ({"type": "function", "function": {"name": "no"}}, TOOLS, "no tool 'no'; there are Book"),
        ("required", openai.NOT_GIVEN, "there are no tools"),
        ("required", schema({"type": "array"}), "parameters of 'f' are no object"),
        ("required", schema({"not": {"required": ["a"]}}), "schema cannot be followed"),
        ("any", TOOLS, "tool_choice"),
        ({"type": "function"}, TOOLS, "tool_choice"),
    ]
    with serving(HERMES) as client:
        for choice, tools, said in cases:
            with pytest.raises(openai.BadRequestError, match=said):
                ask(client, choice, tools=tools)
        monkeypatch.setattr(structured.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(openai.BadRequestError, match=r"pip install 'graftlm\[serve\]'"):
            ask(client, "required")
    with (
        serving(TEMPLATE) as client,
        pytest.raises(openai.BadRequestError, match="no form of tool calls that is known"),
    ):
        ask(client, "required")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("tokens", [(), ("<tool_call>", "</tool_call>")])
def test_llama_cpp_answers_with_a_call(tmp_path: Path, tokens: tuple[str, ...]) -> None:
    pytest.importorskip("llama_cpp")
    from graftlm.models.decoding.choice import Sampling
    from graftlm.models.decoding.row import Ask
    from graftlm.models.llama_cpp import LlamaCpp
    from graftlm.serve.llama import LlamaVoice, LlamaWriter

    tokenizer = bpe_tokenizer()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    tokenizer.chat_template = HERMES
    base = saved_base(tmp_path / "base", "llama", tokenizer)
    export(adapter_on(base, tmp_path / "adapter"), "gguf", tmp_path / "m.gguf")
    model = LlamaCpp(tmp_path / "m.gguf", context=512)
    voice, writer = LlamaVoice(model), LlamaWriter(model)
    grammar = grammar_of_calls(voice.template, TOOLS, None, voice.term, several=False)
    for temperature in (0.0, 1.5):
        ids = voice.text("two")
        chosen = Sampling(temperature, seed=1)
        row = writer.add(Ask(ids, 300, chosen, voice.stop, constraint=voice.constraint(grammar)))
        while row.reason is None:
            writer.step()
        assert row.reason == "stop", row.error
        said, [call] = TaggedCalls().push(row.text)
        assert said == ""
        KINDS[call.name].model_validate_json(call.arguments)
    writer.close()

"""The endpoint as the `openai` client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from graftlm.data import render_prompt
from graftlm.models import generate_text, load_model

TOOLS: Any = [{"type": "function", "function": {"name": "book", "parameters": {}}}]


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


def ask(client: openai.OpenAI, model: str, text: str, **more: Any) -> Any:
    return client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        **({"temperature": 0, "max_tokens": 12} | more),
    )


def test_models_are_the_base_and_its_adapters(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"tiny-chat", "one", "two"}
    assert client.models.retrieve("one").id == "one"
    with pytest.raises(openai.NotFoundError, match="tiny-chat, one, two"):
        client.models.retrieve("three")


def test_the_answer_is_the_one_of_generate(client: openai.OpenAI, chat_llama: Path) -> None:
    model, tokenizer = load_model(str(chat_llama), quantize=None)
    prompt = render_prompt([{"role": "user", "content": "hello"}], tokenizer)
    [wanted] = generate_text(model, tokenizer, [prompt], max_new_tokens=12)
    found = ask(client, "tiny-chat", "hello")
    assert found.choices[0].message.content == wanted.text
    assert found.choices[0].finish_reason == ("stop" if wanted.stopped else "length")
    assert found.usage.prompt_tokens == len(prompt)
    assert found.usage.completion_tokens == wanted.tokens
    assert found.usage.total_tokens == len(prompt) + wanted.tokens


def test_sixteen_at_once_over_two_adapters_equal_one_at_a_time(client: openai.OpenAI) -> None:
    """Must-show 1; half of them sample, by seeds of their own, and lengths differ."""
    asks = [
        {
            "model": ("one", "two", "one", "tiny-chat")[n % 4],
            "text": f"request {n} " * (1 + n % 3),
            "max_tokens": 8 + n,
            "temperature": n % 2 * 0.8,
            "seed": n,
        }
        for n in range(16)
    ]
    alone = [ask(client, **given).choices[0].message.content for given in asks]
    with ThreadPoolExecutor(16) as pool:
        together = [
            a.choices[0].message.content for a in pool.map(lambda g: ask(client, **g), asks)
        ]
    assert together == alone
    assert len(set(alone)) == 16


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI, temperature: float) -> None:
    given: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_tokens": 30}
    whole = ask(client, "two", "hi", **given)
    chunks = list(
        ask(client, "two", "hi", stream=True, stream_options={"include_usage": True}, **given)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(texts) == whole.choices[0].message.content
    assert len(texts) > 3
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_continue_text(client: openai.OpenAI) -> None:
    given: Any = {"model": "one", "max_tokens": 6, "temperature": 0}
    one = client.completions.create(prompt="once upon", **given)
    two = client.completions.create(prompt=["once upon", "twice"], **given)
    assert [c.index for c in two.choices] == [0, 1]
    assert two.choices[0].text == one.choices[0].text
    ids = [256, *b"once upon"]  # not these bytes' ids in this vocabulary, but a valid prompt
    assert client.completions.create(prompt=ids, **given).usage.prompt_tokens == len(ids)  # type: ignore[union-attr]
    stream = client.completions.create(prompt="once upon", stream=True, **given)
    assert "".join(chunk.choices[0].text for chunk in stream) == one.choices[0].text


def test_stop_texts_end_the_answer_and_are_not_in_it(client: openai.OpenAI) -> None:
    text = ask(client, "one", "hello", max_tokens=40).choices[0].message.content
    stop = next(text[n : n + 2] for n in range(3, len(text)) if "\ufffd" not in text[n : n + 2])
    found = ask(client, "one", "hello", max_tokens=40, stop=[stop, "never said"])
    assert found.choices[0].message.content == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_tools_reach_the_template(client: openai.OpenAI) -> None:
    plain = ask(client, "one", "book a table").usage.prompt_tokens
    offered = ask(client, "one", "book a table", tools=TOOLS).usage.prompt_tokens
    refused = ask(client, "one", "book a table", tools=TOOLS, tool_choice="none").usage
    assert offered > plain + 30
    assert refused.prompt_tokens == plain


def test_the_next_turn_reads_only_what_is_new(client: openai.OpenAI) -> None:
    start = "a conversation that is told twice"
    ask(client, "two", start)
    again = ask(client, "two", start)
    assert again.usage.prompt_tokens_details.cached_tokens >= again.usage.prompt_tokens - 1
    other = ask(client, "one", start)
    assert other.usage.prompt_tokens_details.cached_tokens < 12  # the other adapter's are not taken


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n": 2}, "n: "),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias: this field is not supported"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "json_schema is missing"),
        ({"response_format": {"type": "json_object"}, "tools": TOOLS}, "not together with tools"),
        ({"max_tokens": 10**6}, "at most 2,048"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": ["x"] * 17}, "at most 16"),
        ({"text": "long " * 100}, "prompt and answer have 256"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    client: openai.OpenAI, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **({"model": "one", "text": "hi"} | given))
    assert said in refused.value.message


def test_usual_fields_without_effect_are_taken(client: openai.OpenAI) -> None:
    found = ask(
        client, "one", "hi", user="me", n=1, frequency_penalty=0.0, presence_penalty=0,
        response_format={"type": "text"}, parallel_tool_calls=False, top_p=1, seed=None,
    )  # fmt: skip
    assert found.choices


def test_a_template_that_refuses_says_why(client: openai.OpenAI) -> None:
    bad: Any = [{"role": "tool-ish", "content": "x"}]
    with pytest.raises(openai.BadRequestError, match="role"):
        client.chat.completions.create(model="one", messages=bad)


def test_the_client_that_leaves_frees_its_row(client: openai.OpenAI) -> None:
    stream = ask(client, "one", "tell me all", stream=True, max_tokens=200)
    next(iter(stream))
    stream.close()
    assert ask(client, "one", "still there?").choices


def test_a_key_is_needed_where_one_is_set(serve: Any) -> None:
    with serve(key="secret") as port:
        url = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as client:
            assert client.models.list().data
        for wrong in ("Secret", "secretx"):
            with (
                openai.OpenAI(base_url=url, api_key=wrong, max_retries=0) as client,
                pytest.raises(openai.AuthenticationError, match="Bearer"),
            ):
                client.models.list()

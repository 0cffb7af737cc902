"""Tool calls in the forms of real templates, from an answer that is known to the letter."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import openai
import pytest

from graftlm.data.templates import template_text
from graftlm.models.decoding.row import Ask, Row
from graftlm.serve.tool_calls import TaggedCalls, WholeCalls, reader_for
from graftlm.serve.voices import TokenizerVoice
from tests.oracles.byte_tokenizer import byte_tokenizer
from tests.oracles.chat_families import FAMILIES
from tests.serve.conftest import started

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "book",
            "description": "Book a table",
            "parameters": {"type": "object", "properties": {"people": {"type": "integer"}}},
        },
    }
]
HERMES = FAMILIES["qwen2"].template
LLAMA = (
    "{%- if tools %}Environment: ipython\nAnswer with "
    '{"name": function name, "parameters": dictionary of arguments}\n'
    "{%- for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{%- for m in messages %}<{{ m.role }}>{% if m.tool_calls %}{{ m.tool_calls | tojson }}"
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    "{%- if add_generation_prompt %}<assistant>{% endif %}"
)
BOOK = '<tool_call>\n{"name": "book", "arguments": {"people": 2, "for": "Lấn"}}\n</tool_call>'


class Scripted:
    """A writer whose answers are given: one byte a step."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.text = tokenizer, ""
        self.asked: list[str] = []
        self._rows: list[tuple[Row, list[int]]] = []

    @property
    def busy(self) -> bool:
        return bool(self._rows)

    def add(self, ask: Ask) -> Row:
        self.asked.append(self.tokenizer.decode(ask.ids))
        row = Row(ask, self.tokenizer, 10_000)
        ids = self.tokenizer(self.text, add_special_tokens=False).input_ids
        self._rows.append((row, [*ids, self.tokenizer.eos_token_id]))
        return row

    def step(self) -> list[Row]:
        for row, left in self._rows:
            row.take(left.pop(0), frozenset([self.tokenizer.eos_token_id]))
        rows = [row for row, _ in self._rows]
        self._rows = [(row, left) for row, left in self._rows if row.reason is None]
        return rows

    def cancel(self, row: Row) -> None:
        row.reason = row.reason or "cancelled"

    def fail(self, error: Exception) -> list[Row]:
        raise error

    def close(self) -> None:
        self._rows.clear()


Answer = Callable[..., AbstractContextManager[tuple[openai.OpenAI, Scripted]]]


@pytest.fixture
def answer() -> Answer:
    """A server whose model has this template and gives this answer."""

    @contextlib.contextmanager
    def serve(template: str, text: str) -> Iterator[tuple[openai.OpenAI, Scripted]]:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        writer = Scripted(tokenizer)
        writer.text = text
        voices = {"m": TokenizerVoice.of(tokenizer, None)}
        with (
            started(writer, voices) as port,
            openai.OpenAI(
                base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
            ) as client,
        ):
            yield client, writer

    return serve


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        **(
            {"model": "m", "messages": [{"role": "user", "content": "two"}], "tools": TOOLS}
            | {"max_tokens": 500}
            | more
        )
    )


CASES = {
    "hermes": (HERMES, f"Sure.\n{BOOK}", "Sure.", [{"people": 2, "for": "Lấn"}]),
    "hermes, two": (HERMES, f"{BOOK}\n{BOOK}", None, [{"people": 2, "for": "Lấn"}] * 2),
    "hermes, no last tag": (HERMES, BOOK[:-13], None, [{"people": 2, "for": "Lấn"}]),
    "llama": (LLAMA, '{"name": "book", "parameters": {"people": 2}}', None, [{"people": 2}]),
}


@pytest.mark.parametrize("case", CASES)
def test_calls_are_taken_out_of_the_answer_whole_and_in_a_stream(answer: Answer, case: str) -> None:
    template, text, said, arguments = CASES[case]
    with answer(template, text) as (client, _):
        found = ask(client).choices[0]
        assert found.finish_reason == "tool_calls"
        assert found.message.content == said
        assert [call.function.name for call in found.message.tool_calls] == ["book"] * len(
            arguments
        )
        given = [json.loads(call.function.arguments) for call in found.message.tool_calls]
        assert given == arguments

        chunks = [chunk.choices[0] for chunk in ask(client, stream=True)]
        assert "".join(c.delta.content or "" for c in chunks) == (said or "")
        calls = [call for c in chunks for call in c.delta.tool_calls or []]
        assert [call.index for call in calls] == list(range(len(arguments)))
        assert [json.loads(call.function.arguments) for call in calls] == arguments
        assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (HERMES, "no call at all, 1 < 2 <tool"),
        (HERMES, "<tool_call>{not json}</tool_call> and so on\n"),
        (LLAMA, '{"name": "other", "parameters": {}}'),
        (LLAMA, '{"food": "pho"}'),
        (LLAMA, "plain { text }"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", BOOK),
    ],
)
def test_what_is_no_call_stays_the_answer(answer: Answer, template: str, text: str) -> None:
    with answer(template, text) as (client, _):
        found = ask(client).choices[0]
        assert (found.message.content, found.finish_reason) == (text, "stop")
        assert found.message.tool_calls is None
        chunks = [chunk.choices[0] for chunk in ask(client, stream=True)]
        assert "".join(c.delta.content or "" for c in chunks) == text
        assert chunks[-1].finish_reason == "stop"


def test_without_tools_the_text_is_the_answer(answer: Answer) -> None:
    with answer(HERMES, BOOK) as (client, _):
        for more in ({"tools": openai.NOT_GIVEN}, {"tool_choice": "none"}):
            assert ask(client, **more).choices[0].message.content == BOOK


def test_the_result_of_a_call_goes_back_to_the_template(answer: Answer) -> None:
    """As the client sends it: the arguments are text, the content of the call is null."""
    with answer(template_text("chatml", byte_tokenizer()), BOOK) as (client, writer):
        first = ask(client).choices[0].message
        result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "table 7"}
        ask(client, messages=[{"role": "user", "content": "two"}, first, result])
    asked = writer.asked[-1]
    assert '"arguments": {"people": 2, "for": "Lấn"}' in asked  # an object, not text in quotes
    assert "table 7" in asked
    assert '"description": "Book a table"' in asked


def test_text_is_given_out_as_soon_as_it_is_no_call() -> None:
    reader = TaggedCalls()
    assert reader.push("Sure") == ("Sure", [])
    assert reader.push(", <") == (",", [])  # may become a tag
    assert reader.push("b> ") == (" <b>", [])
    assert reader.end() == (" ", [])
    whole = WholeCalls({"book"})
    assert whole.push(" ") == ("", [])
    assert whole.push("Hi {") == (" Hi {", [])


def test_the_form_is_told_by_the_template() -> None:
    assert reader_for(HERMES, TOOLS) is TaggedCalls
    assert isinstance(reader_for(LLAMA, TOOLS)(), WholeCalls)  # type: ignore[misc]
    assert reader_for(None, TOOLS) is None
    assert reader_for("<tool_call><function=...> arguments", TOOLS) is None  # Qwen3-Coder

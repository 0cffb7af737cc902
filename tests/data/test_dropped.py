"""What a chat template leaves out is found; arguments of calls reach it in a form it can show."""

from __future__ import annotations

import json

import pytest

from graftlm.config import DataConfig
from graftlm.data import Encoder, load_examples, parse_row
from tests.oracles.chat_families import tokenizer_of

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
THOUGHT = {"role": "assistant", "content": "<think>\nlong thought\n</think>\n\nhello"}
BOOK = {"type": "function", "function": {"name": "book", "arguments": {"city": "Huế", "n": 4}}}
BOOK_TWICE = [BOOK, {"type": "function", "function": {"name": "book", "arguments": {"n": 77}}}]
TOOLS = [{"type": "function", "function": {"name": "book", "parameters": {}}}]
HEAD = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}"
)
TAIL = (
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
JOINS = HEAD + "{{ '<call>' + call.function.name + call.function.arguments }}" + TAIL
PRINTS = HEAD + "<call>{{ call.function.name }}{{ call.function.arguments }}" + TAIL
FIRST_ONLY = HEAD.replace("message.tool_calls or []", "(message.tool_calls or [])[:1]") + (
    "<call>{{ call.function.name }}{{ call.function.arguments | tojson }}" + TAIL
)


def found(name, messages, template=None, **more):
    tokenizer = tokenizer_of(name)
    if template:
        tokenizer.chat_template = template
    report = load_examples([{"messages": messages, **more}], tokenizer, DataConfig()).report
    assert report.malformed == 0
    return set(report.notes)


@pytest.mark.parametrize(
    ("name", "messages", "more", "kind"),
    [
        ("qwen3", [USER, THOUGHT, USER, ANSWER], {}, "thoughts_dropped"),
        ("qwen2", [USER, ANSWER | {"reasoning_content": "a thought"}], {}, "thoughts_dropped"),
        ("llama2", [USER, ANSWER | {"thinking": "a thought"}], {}, "thoughts_dropped"),
        ("qwen2", [USER, ANSWER | {"reasoning": ["a", "thought"]}], {}, "thoughts_dropped"),
        ("qwen2", [USER, ANSWER | {"notes": {"of": "good"}}], {}, "fields_dropped"),
        ("llama3", [USER, ANSWER], {"tools": TOOLS}, "tools_dropped"),
        ("qwen2", [USER, ANSWER | {"rating": "good"}], {}, "fields_dropped"),
        ("zephyr", [USER | {"name": "Lan"}, ANSWER], {}, "fields_dropped"),
    ],
)
def test_what_is_gone_from_the_text_is_a_finding(name, messages, more, kind):
    """The live oracle: the field's text is not in what transformers renders."""
    tokenizer = tokenizer_of(name)
    text = tokenizer.apply_chat_template(messages, tokenize=False, **more)
    assert not any(word in text for word in ("thought", "book", "good", "Lan"))
    assert kind in found(name, messages, **more)


def test_what_is_shown_is_no_finding():
    assert found("qwen3", [USER, THOUGHT]) == set()
    assert found("qwen3", [USER, ANSWER, USER, {**ANSWER, "content": "  spaced   out "}]) == set()
    call = {"role": "assistant", "content": "", "tool_calls": [BOOK]}
    assert found("qwen2", [USER, call, {"role": "tool", "content": "ok"}, ANSWER]) == set()


def test_a_message_that_the_template_skips_is_a_finding():
    users_only = (
        "{% for m in messages %}{% if m.role != 'system' %}<|{{ m.role }}|>\n{{ m.content }}</s>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    system = {"role": "system", "content": "Be brief."}
    assert found("zephyr", [system, USER, ANSWER], users_only) == {"message_dropped"}


def test_a_second_call_of_one_turn_that_is_lost_is_a_finding():
    turn = {"role": "assistant", "content": "", "tool_calls": BOOK_TWICE}
    assert found("qwen2", [USER, turn]) == set()
    assert found("qwen2", [USER, turn], FIRST_ONLY) == {"answer_dropped"}


@pytest.mark.parametrize("template", [JOINS, PRINTS])
@pytest.mark.parametrize("given", ['{"city":"Huế",  "n":4}', {"city": "Huế", "n": 4}])
def test_templates_that_join_strings_get_the_rows_own_text(template, given):
    """The live oracle: transformers with the arguments as text."""
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = template
    call = {"type": "function", "function": {"name": "book", "arguments": given}}
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    as_text = {"type": "function", "function": {"name": "book", "arguments": text}}

    def chat(calls):
        return [USER, {"role": "assistant", "content": "", "tool_calls": calls}]

    expected = tokenizer.apply_chat_template(chat([as_text] * 2), tokenize=False)
    rendered = Encoder(tokenizer, DataConfig()).format.render(
        parse_row({"messages": chat([call] * 2)})
    )
    assert rendered.text == expected
    [(start, end)] = rendered.learned
    assert rendered.text[start:end] == f"<call>book{text}" * 2 + "<|im_end|>"
    assert rendered.dropped == ()


def test_training_is_told_of_what_is_dropped():
    rows = [{"messages": [USER, THOUGHT, USER, ANSWER]}]
    report = load_examples(rows, tokenizer_of("qwen3"), DataConfig()).report
    [line] = report.said("data", 512)
    assert line == (
        "data: 1 rows have thoughts that the chat template leaves out: not learned; "
        "first row:1: messages[1] (assistant)"
    )


def test_the_text_of_a_special_token_becomes_that_token_and_is_told():
    tokenizer = tokenizer_of("zephyr")
    chat = [{"role": "user", "content": "what is </s> for?"}, ANSWER]
    examples = load_examples([{"messages": chat}], tokenizer, DataConfig())
    oracle = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert examples[0].input_ids.tolist()[: len(oracle)] == oracle[: len(examples[0])]
    assert examples.report.notes == {"special_token_in_text": 1}
    inside = [USER, {"role": "assistant", "content": "stop</s> go"}]
    report = load_examples([{"messages": inside}], tokenizer, DataConfig()).report
    assert report.notes["end_inside_answer"] == 1

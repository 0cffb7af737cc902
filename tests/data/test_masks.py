"""The trained text is the assistant's text and its end token, character by character."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from graftlm.config import DataConfig
from graftlm.data import Encoder, parse_row, render_prompt, stop_tokens
from graftlm.data.templates import BUILT_IN
from tests.oracles.chat_families import BASES, FAMILIES, readable, text_of, tokenizer_of

# What a template or tokenizer could trip over: spaces at the edges, newlines, its own markers'
# neighbours, combining marks, byte-fallback characters.
PIECES = st.sampled_from(
    ["\n", "\n\n", " ", "  ", "\t", "Hello", "a", ":", "\u0301", "e\u0301", "😀", "đ", "你好", "#",
     "\u200b", "▁", "model", "assistant\n", "[", "<", "|", "{{", "%}", "'", '"', "\\", "\r\n"]
)  # fmt: skip
ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
CONTENT = st.lists(st.one_of(PIECES, ANY), min_size=1, max_size=5).map("".join)
CHATS = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3)
QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def messages_of(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": r, "content": c} for turn in chat for r, c in zip(roles, turn, strict=True)]


def runs(supervised) -> list[tuple[int, int]]:
    """Maximal runs of supervised tokens."""
    found, start = [], None
    for i, on in enumerate([*supervised, False]):
        if on and start is None:
            start = i
        elif not on and start is not None:
            found.append((start, i))
            start = None
    return found


def trained(encoder, tokenizer, chat, **row) -> list[str]:
    [made] = encoder.rows([parse_row({"messages": messages_of(chat), **row})])
    return [text_of(tokenizer, made.input_ids[a:b]) for a, b in runs(made.supervised)]


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_text_is_the_answers_and_their_end_token(name):
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    encoder = Encoder(tokenizer, DataConfig())

    @given(CHATS)
    @example([("hi", " \n ")])
    @example([("hi", "Hello"), ("more ", "\nyes\n"), ("a", "b ")])
    @QUICK
    def check(chat):
        expected = []
        for number, (_, answer) in enumerate(chat):
            last = number == len(chat) - 1
            before = "<think>\n\n</think>\n\n" if name == "qwen3" and last else family.before
            text = before + family.seen(answer) + family.end
            expected.append(text + (family.eos if not family.end and last else ""))
        found = trained(encoder, tokenizer, chat)
        if family.swallows:  # its tokenizer puts a space between a marker and a word
            expected = [text if text[0].isspace() else " " + text for text in expected]
        assert found == [readable(tokenizer, text) for text in expected if text]

    check()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("template", BUILT_IN)
def test_built_in_templates_train_on_the_answers_and_their_end_token(template, base):
    tokenizer = tokenizer_of(base, base=True)
    encoder = Encoder(tokenizer, DataConfig(chat_template=template))
    marker = BUILT_IN[template][1]
    end = marker if marker in tokenizer.get_vocab() else tokenizer.eos_token
    before = " " if template == "mistral" else ""
    exact = base != "unigram"  # which knows few characters

    @given(CHATS)
    @settings(QUICK, max_examples=15)
    def check(chat):
        row = parse_row({"messages": messages_of(chat)})
        rendered = encoder.format.render(row)
        expected = [before + answer + end for _, answer in chat]
        assert [rendered.text[a:b] for a, b in rendered.learned] == expected
        if exact:
            expected = [readable(tokenizer, text) for text in expected]
            assert trained(encoder, tokenizer, chat) == expected

    check()


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_starts_from_the_very_tokens_training_saw(name):
    tokenizer = tokenizer_of(name)
    encoder = Encoder(tokenizer, DataConfig())

    @given(CHATS)
    @settings(QUICK, max_examples=30)
    def check(chat):
        if name == "qwen3":  # drops the thoughts of earlier turns, so histories differ by design
            chat = chat[:1]
        messages = messages_of(chat)
        [made] = encoder.rows([parse_row({"messages": messages})])
        start = runs(made.supervised)[-1][0]
        assert render_prompt(messages[:-1], tokenizer) == made.input_ids[:start].tolist()

    check()


@pytest.mark.parametrize("name", BASES)
def test_prompt_and_completion_are_plain_text_closed_by_the_end_token(name):
    tokenizer = tokenizer_of(name, base=True)
    encoder = Encoder(tokenizer, DataConfig())

    @given(st.one_of(st.just(""), CONTENT), st.one_of(st.just(""), CONTENT))
    @example("name: x ", " there")
    @example("a\n", "\n\nb")
    @settings(QUICK, max_examples=40)
    def check(prompt, completion):
        [made] = encoder.rows([parse_row({"prompt": prompt, "completion": completion})])
        given_ids = render_prompt(prompt, tokenizer)
        assert made.input_ids[: len(given_ids)].tolist() == given_ids
        assert not made.supervised[: len(given_ids)].any()
        assert made.supervised[len(given_ids) :].all()
        assert made.input_ids[-1] == tokenizer.eos_token_id
        if name != "unigram":
            learned = text_of(tokenizer, made.input_ids[made.supervised])
            expected = readable(tokenizer, completion + tokenizer.eos_token)
            if name == "llama" and not prompt and completion:
                expected = " " + expected  # which it puts before every text
            assert learned == expected

    check()


def test_no_token_straddles_a_boundary_even_where_the_tokenizer_would_merge():
    tokenizer = tokenizer_of("gemma")
    merged = tokenizer.tokenize("model\nHi")
    assert not any(merged[: i + 1] == tokenizer.tokenize("model\n") for i in range(len(merged)))
    encoder = Encoder(tokenizer, DataConfig())
    assert trained(encoder, tokenizer, [("q", "Hi, hi.")]) == ["Hi, hi.<end_of_turn>"]


def test_only_the_last_answer_or_everything_or_what_the_row_says():
    tokenizer = tokenizer_of("llama3")
    chat = [("q", "one"), ("r", "two"), ("s", "three")]
    end = "<|eot_id|>"
    last = Encoder(tokenizer, DataConfig(loss_on="last"))
    assert trained(last, tokenizer, chat) == [f"three{end}"]
    everything = Encoder(tokenizer, DataConfig(loss_on="all"))
    [made] = everything.rows([parse_row({"messages": messages_of(chat)})])
    assert made.supervised.all()
    messages = messages_of(chat)
    messages[3]["train"] = False
    messages[5]["weight"] = 0
    [made] = Encoder(tokenizer, DataConfig()).rows([parse_row({"messages": messages})])
    assert [text_of(tokenizer, made.input_ids[a:b]) for a, b in runs(made.supervised)] == [
        f"one{end}"
    ]
    [made] = last.rows([parse_row({"messages": messages})])
    assert text_of(tokenizer, made.input_ids[made.supervised]) == f"one{end}"


def test_thoughts_are_learned_where_the_template_shows_them():
    tokenizer = tokenizer_of("qwen3")
    chat = [("q", "<think>\nhm\n</think>\n\nyes"), ("r", "<think>\nwell\n</think>\n\nno")]
    assert trained(Encoder(tokenizer, DataConfig()), tokenizer, chat) == [
        "yes<|im_end|>",
        "<think>\nwell\n</think>\n\nno<|im_end|>",
    ]


@pytest.mark.parametrize(("name", "template"), [("qwen2", "auto"), ("gpt2", "chatml")])
def test_tool_calls_are_learned_and_results_are_not(name, template):
    tokenizer = tokenizer_of(name, base=template != "auto")
    encoder = Encoder(tokenizer, DataConfig(chat_template=template))
    call = {"type": "function", "function": {"name": "book", "arguments": '{"n": 4}'}}
    messages = [
        {"role": "user", "content": "a table"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "booked"},
        {"role": "assistant", "content": "Done."},
    ]
    [made] = encoder.rows([parse_row({"messages": messages})])
    end = "<|im_end|>" if name == "qwen2" else tokenizer.eos_token
    expected = '<tool_call>\n{"name": "book", "arguments": {"n": 4}}\n</tool_call>' + end
    found = [text_of(tokenizer, made.input_ids[a:b]) for a, b in runs(made.supervised)]
    assert [text.lstrip("\n") for text in found] == [expected, f"Done.{end}"]


def test_a_tokenizer_without_fast_backend_gives_the_same_boundaries():
    tokenizer = tokenizer_of("zephyr")
    encoder = Encoder(tokenizer, DataConfig())
    row = parse_row({"messages": messages_of([("hi", "Hello there"), ("b", "c")])})
    encoder._backend = None
    [made] = encoder.rows([row])
    found = [text_of(tokenizer, made.input_ids[a:b]).strip() for a, b in runs(made.supervised)]
    assert found == ["Hello there</s>", "c</s>"]


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_stops_at_the_token_that_training_ends_answers_with(name):
    tokenizer = tokenizer_of(name)
    [made] = Encoder(tokenizer, DataConfig()).rows(
        [parse_row({"messages": messages_of([("q", "a")])})]
    )
    assert made.input_ids[made.supervised][-1] in stop_tokens(tokenizer)

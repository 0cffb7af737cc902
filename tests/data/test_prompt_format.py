"""One prompt format an adapter: it is asked in the form it was trained in, by every program."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from graftlm.config import DataConfig
from graftlm.data import Encoder, load_examples, parse_row, render_prompt
from graftlm.data.prompt_format import PromptFormat, format_in, format_of, with_format, written_with
from tests.oracles.chat_families import BASES, FAMILIES, tokenizer_of

ROW = {"prompt": "two pizzas", "completion": "pizza: 2"}
SEPARATORS = ["\n", "", " ", "\n\n### Answer:\n", " -#} {{ x }} END '\"\\", "→ đáp: "]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_the_separator_stands_between_prompt_and_completion(separator):
    tokenizer = tokenizer_of("gpt2", base=True)
    config = DataConfig(separator=separator)
    encoder = Encoder(tokenizer, config)
    rendered = encoder.format.render(parse_row(ROW))
    assert rendered.text == f"two pizzas{separator}pizza: 2"
    [example] = load_examples([ROW], tokenizer, config)
    start = int(example.supervised.argmax())
    assert tokenizer.decode(example.input_ids[start:]) == "pizza: 2" + tokenizer.eos_token
    assert render_prompt("two pizzas", tokenizer, config) == example.input_ids[:start].tolist()


@pytest.mark.parametrize("name", [*BASES, *FAMILIES])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_template_of_plain_text_asks_with_the_tokens_of_training(name, separator):
    """Through the saved template a question becomes the very ids that training began with."""
    tokenizer = tokenizer_of(name, base=name in BASES)
    config = DataConfig(separator=separator)
    [example] = load_examples([ROW], tokenizer, config)
    start = int(example.supervised.argmax())
    saved = with_format(tokenizer, format_of({"completion": 1, "chat": 0}, config))
    asked = render_prompt([{"role": "user", "content": "two pizzas"}], saved)
    assert asked == example.input_ids[:start].tolist()
    assert render_prompt("two pizzas", saved) == asked


@pytest.mark.parametrize("separator", SEPARATORS)
def test_other_programs_render_the_saved_template_as_training_did(separator, tmp_path):
    """The live oracle: transformers, from the saved files."""
    tokenizer = tokenizer_of("deepseek")
    saved = with_format(tokenizer, PromptFormat("plain", separator))
    saved.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "two pizzas"}, {"role": "assistant", "content": "pizza: 2"}]
    prompt = theirs.apply_chat_template(
        chat[:1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    [example] = load_examples([ROW], tokenizer, DataConfig(separator=separator))
    assert prompt == example.input_ids[: int(example.supervised.argmax())].tolist()
    text = theirs.apply_chat_template(chat, tokenize=False)
    assert text == f"{tokenizer.bos_token}two pizzas{separator}pizza: 2{tokenizer.eos_token}"
    assert format_in(theirs.chat_template) == PromptFormat("plain", separator)
    assert tokenizer.chat_template == tokenizer_of("deepseek").chat_template  # a copy was changed


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_separator_is_read_back_from_the_template(separator):
    form = PromptFormat("plain", separator)
    template = written_with(form, tokenizer_of("gpt2", base=True))
    assert format_in(template) == form


def test_kinds_of_rows_decide_the_format():
    config = DataConfig(separator=" ")
    assert format_of({"chat": 3, "completion": 1}, config).kind == "chat"
    assert format_of({"chat": 0, "completion": 1, "text": 2}, config) == PromptFormat("plain", " ")
    assert format_of({"chat": 0, "completion": 0, "text": 2}, config) == PromptFormat("text")
    assert format_in(FAMILIES["llama3"].template) is None
    assert format_in(None) is None


def test_a_model_trained_on_text_continues_a_prompt_as_it_is():
    tokenizer = tokenizer_of("llama", base=True)
    saved = with_format(tokenizer, PromptFormat("text"))
    whole = load_examples([{"text": "two pizzas to go"}], tokenizer, DataConfig())[0]
    assert render_prompt("two pizzas to go", saved) == whole.input_ids[:-1].tolist()


def test_questions_and_answers_become_chat_turns_on_request():
    """The live oracle: transformers renders the same question."""
    tokenizer = tokenizer_of("qwen2")
    config = DataConfig(format="chat")
    examples = load_examples([ROW], tokenizer, config)
    assert examples.report.kinds == {"chat": 1}
    chat = [{"role": "user", "content": "two pizzas"}, {"role": "assistant", "content": "pizza: 2"}]
    same = load_examples([{"messages": chat}], tokenizer, DataConfig())
    assert examples[0].input_ids.tolist() == same[0].input_ids.tolist()
    oracle = tokenizer.apply_chat_template(
        chat[:1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert examples[0].input_ids[: len(oracle)].tolist() == oracle
    plain = load_examples([ROW], tokenizer, DataConfig())
    assert json.dumps(plain[0].input_ids.tolist()) != json.dumps(examples[0].input_ids.tolist())

"""Exactly one begin token, first: in training, after every cut, and in generation."""

from __future__ import annotations

import pytest

from graftlm.config import DataConfig
from graftlm.data import load_examples, render_prompt
from tests.oracles.chat_families import BASES, FAMILIES, tokenizer_of

BEGIN = [name for name, family in BASES.items() if family.bos and name != "gpt2"]
CHATS = [name for name, family in FAMILIES.items() if family.template and family.bos]
WORDS = " ".join(f"word{i}" for i in range(60))


def begins_once(ids, tokenizer) -> bool:
    ids = list(ids)
    return ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]


@pytest.mark.parametrize("name", BEGIN)
@pytest.mark.parametrize("truncation", ["left", "right", "split"])
def test_every_part_of_a_plain_row_begins_with_the_begin_token(name, truncation):
    tokenizer = tokenizer_of(name, base=True)
    config = DataConfig(max_length=24, truncation=truncation)
    rows = [{"prompt": WORDS, "completion": WORDS}, {"text": WORDS}]
    whole = load_examples(rows, tokenizer, DataConfig(max_length=4096))
    examples = load_examples(rows, tokenizer, config)
    assert len(examples) >= (1 if truncation == "right" else 2)
    for example in examples:
        assert begins_once(example.input_ids, tokenizer)
        assert len(example) <= 24
        assert not example.supervised[0] or example.input_ids[0] == whole[1].input_ids[0]
    if truncation == "split":  # nothing is lost and nothing is said twice
        last = [e for e in examples if e.supervised.any()]
        text = [i for e in last for i in e.input_ids.tolist()[1:]]
        assert text[-len(whole[1]) + 1 :] == whole[1].input_ids.tolist()[1:]


@pytest.mark.parametrize("name", BEGIN)
def test_a_text_that_begins_with_it_gets_no_second_one(name):
    """The live oracle is the tokenizer on the text without it."""
    tokenizer = tokenizer_of(name, base=True)
    bos = tokenizer.bos_token
    for row in ({"prompt": f"{bos}ask", "completion": "say"}, {"text": f"{bos}ask"}):
        [example] = load_examples([row], tokenizer, DataConfig())
        assert begins_once(example.input_ids, tokenizer)
    assert begins_once(render_prompt(f"{bos}ask", tokenizer), tokenizer)
    assert begins_once(render_prompt("ask", tokenizer), tokenizer)


@pytest.mark.parametrize("name", CHATS)
def test_chats_begin_as_transformers_begins_them_also_after_a_cut(name):
    tokenizer = tokenizer_of(name)
    chat = [{"role": "user", "content": WORDS}, {"role": "assistant", "content": WORDS}]
    oracle = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    begins = oracle[0] == tokenizer.bos_token_id
    rows = [{"messages": chat}]
    assert load_examples(rows, tokenizer, DataConfig(max_length=4096))[0].input_ids[0] == oracle[0]
    for truncation in ("left", "split"):
        config = DataConfig(max_length=24, truncation=truncation)
        for example in load_examples(rows, tokenizer, config):
            assert begins_once(example.input_ids, tokenizer) == begins
    ids = render_prompt(chat[:1], tokenizer)
    assert begins_once(ids, tokenizer) == begins

"""`graftlm.generate`: by name or of a model in hand, one or several, as the command answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import graftlm
from graftlm.cli.app import app
from graftlm.errors import ConfigError
from tests.serve.conftest import adapters, chat_llama

__all__ = ["adapters", "chat_llama"]  # fixtures


def command(*words: str) -> str:
    done = CliRunner().invoke(app, ["generate", *words, "--max-new-tokens", "9", "--json"])
    assert done.exit_code == 0, done.output
    text: str = json.loads(done.stdout)["text"]
    return text


def test_it_says_what_the_command_says(chat_llama: Path, adapters: dict[str, str]) -> None:
    for adapter in (None, adapters["one"]):
        found = graftlm.generate(chat_llama, "hello", adapter=adapter, max_new_tokens=9)
        more = () if adapter is None else ("--adapter", adapter)
        assert found.text == command(str(chat_llama), "--prompt", "hello", *more)
        assert 0 < found.tokens <= 9


def test_several_prompts_and_conversations_of_a_model_in_hand(chat_llama: Path) -> None:
    model, tokenizer = graftlm.load_model(str(chat_llama), quantize=None)
    model.train()
    asked: list[Any] = ["hello", [{"role": "user", "content": "hello"}], "other"]
    found = graftlm.generate(model, asked, tokenizer=tokenizer, max_new_tokens=9)
    assert model.training
    assert found[0] == found[1]  # a text is a turn of the user
    assert found[0].text != found[2].text
    alone = graftlm.generate(str(chat_llama), "other", max_new_tokens=9)
    assert found[2] == alone
    one: Any = asked[1]
    assert graftlm.generate(model, one, tokenizer=tokenizer, max_new_tokens=9) == found[1]


def test_the_seed_decides_what_is_sampled(chat_llama: Path) -> None:
    model, tokenizer = graftlm.load_model(str(chat_llama), quantize=None)
    keywords: dict[str, Any] = {"tokenizer": tokenizer, "max_new_tokens": 9, "temperature": 1.0}
    first, second = graftlm.generate(model, ["hi", "hi"], seed=3, **keywords)
    assert first.text != second.text
    assert graftlm.generate(model, "hi", seed=4, **keywords) == second


def test_a_model_without_its_tokenizer_is_refused(chat_llama: Path) -> None:
    model, _ = graftlm.load_model(str(chat_llama), quantize=None)
    with pytest.raises(ConfigError, match="tokenizer="):
        graftlm.generate(model, "hello")
    with pytest.raises(ConfigError, match="expected auto, chat or plain"):
        graftlm.generate(chat_llama, "hello", format="html")

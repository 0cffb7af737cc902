"""Prompts and settings that no work should begin with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graftlm.config import DataConfig
from graftlm.data import load_examples, render_prompt
from graftlm.errors import ConfigError, DataError
from tests.oracles.byte_tokenizer import byte_tokenizer


def test_half_of_a_surrogate_pair_in_a_prompt_is_refused() -> None:
    for given in ("a\udcff", [{"role": "user", "content": "a\ud800"}]):
        with pytest.raises(DataError, match="not valid Unicode at character 1"):
            render_prompt(given, byte_tokenizer())
    assert render_prompt("phở", byte_tokenizer())


def test_more_processes_than_the_machine_can_use_are_refused(rows_file: Path) -> None:
    most = 4 * (os.cpu_count() or 1)
    with pytest.raises(ConfigError, match=f"so at most {most}"):
        load_examples(str(rows_file), byte_tokenizer(), DataConfig(workers=most + 1))

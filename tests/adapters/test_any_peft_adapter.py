"""A few of the draws of `benchmarks/peft_adapters.py`: never a silent difference."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peft_adapters import outcome

pytestmark = pytest.mark.filterwarnings("ignore")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from(["llama", "gpt2", "qwen3_moe", "opt"]), st.integers(0, 10_000))
def test_an_adapter_of_peft_is_equal_or_refused(model_type: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options, said = outcome(model_type, random.Random(seed), Path(folder))
    assert said.startswith(("equal", "refused")), (options, said)

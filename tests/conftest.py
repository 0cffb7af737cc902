"""Tiny models and a byte-level tokenizer: enough to train, in milliseconds."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.oracles.byte_tokenizer import byte_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "GRAFTLM_TEST_GPU" not in os.environ:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Read when torch is first imported. Two workers with two spinning threads each on two cores
    # take ten times as long as with one.
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


@pytest.fixture(scope="session", autouse=True)
def on_the_processor() -> Iterator[None]:
    """Nothing here uses a GPU, so that one in the machine changes nothing."""
    if "GRAFTLM_TEST_GPU" in os.environ:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: False)
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Every byte a token."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A random two-layer Llama over bytes, saved as a transformers folder in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short prompt/completion rows of uneven length."""
    draw = random.Random(0)
    rows = []
    for _ in range(40):
        word = "".join(draw.choice("abcdefgh") for _ in range(draw.randint(2, 12)))
        rows.append({"prompt": f"say {word}", "completion": f"{word}!"})
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

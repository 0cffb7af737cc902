"""Training against live peers: the same adapter, the same batches, the same losses."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

PARITY: dict[str, Any] = runpy.run_path(
    str(Path(__file__).parents[2] / "benchmarks" / "parity_peft.py")
)


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A random Llama whose rows are multiples of 64, as bitsandbytes needs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    folder = tmp_path_factory.mktemp("small-llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize("quantize", [None, "nf4"], ids=["lora", "qlora"])
def test_twenty_steps_equal_the_peers_on_a_small_llama(
    small_llama: Path, quantize: str | None
) -> None:
    batches = PARITY["batches_for"](str(small_llama), 20)
    ours, theirs = PARITY["losses"](str(small_llama), batches, quantize)
    assert PARITY["largest_difference"](ours, theirs) <= 1e-4


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantize", [None, "nf4"], ids=["lora", "qlora"])
def test_steps_equal_the_peers_on_gemma(quantize: str | None) -> None:
    batches = PARITY["batches_for"]("gemma-3-270m", 3, rows=2)
    ours, theirs = PARITY["losses"]("gemma-3-270m", batches, quantize)
    assert PARITY["largest_difference"](ours, theirs) <= 1e-4

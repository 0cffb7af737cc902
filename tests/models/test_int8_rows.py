"""Embedding table and head in 8 bits: what they hold, what they compute, who may have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

import graftlm
from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.data.batch import Batch
from graftlm.errors import ConfigError, ModelError, TargetError
from graftlm.layers import Int8Embedding, Int8Output
from graftlm.layers.int8_rows import quantize_rows
from graftlm.models import load_weights
from graftlm.models.int8_rows import rows_in_int8
from graftlm.train import run
from graftlm.train.loss import causal_lm_loss

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
CONFIGS = {
    "gemma3": Gemma3TextConfig(**SIZES, tie_word_embeddings=True),  # √D times the table
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
}


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    spread=st.floats(1e-6, 1e6),
    seed=st.integers(0, 99),
)
def test_no_weight_is_further_off_than_half_a_step(
    rows: int, columns: int, spread: float, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * spread
    weight[0] = 0
    stored = quantize_rows(weight)
    assert stored.codes.dtype == torch.int8
    step = stored.row_scale[:, None]
    assert ((stored.codes * step - weight).abs() <= step * 0.5001).all()
    assert (stored.codes[0] == 0).all()
    assert (stored.codes[1:].abs().amax(1) == 127).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_model_is_that_of_the_rounded_weights(family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=dtype).eval()
    rounded = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=dtype).eval()
    rounded.load_state_dict(model.state_dict())
    for layer in {rounded.get_input_embeddings(), rounded.get_output_embeddings()}:
        stored = quantize_rows(layer.weight)
        layer.weight.data = (stored.codes * stored.row_scale[:, None]).to(dtype)
    rows_in_int8(model)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == (family == "gemma3")
    ids = torch.randint(1, 300, (2, 40))
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for few in (ids, ids[:1, :5]):
        with torch.no_grad():
            torch.testing.assert_close(model(few).logits, rounded(few).logits, **close)
    batch = Batch(ids, ids, tokens=80)
    torch.testing.assert_close(
        causal_lm_loss(model, batch), causal_lm_loss(rounded, batch), rtol=2e-3, atol=0
    )


def test_a_table_that_does_more_than_look_up_is_refused() -> None:
    class Doubled(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(ids)

    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    table = model.get_input_embeddings()
    model.set_input_embeddings(Doubled(300, 64, _weight=table.weight.detach()))
    with pytest.raises(ModelError, match="something of its own"):
        rows_in_int8(model)
    assert isinstance(model.lm_head, nn.Linear)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_loaded_model_holds_a_quarter_of_the_table(tiny_llama: Path, quantize: str) -> None:
    plain = load_weights(tiny_llama, quantize=quantize)
    model = load_weights(tiny_llama, quantize=quantize, embeddings="int8")
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(table, Int8Embedding)
    assert isinstance(head, Int8Output)
    assert table.weight.nbytes * 4 == plain.get_input_embeddings().weight.nbytes
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 7)


def test_an_adapter_on_them_is_refused(tiny_llama: Path) -> None:
    model = load_weights(tiny_llama, embeddings="int8")
    for name in ("embed_tokens", "lm_head"):
        with pytest.raises(TargetError, match=name):
            graftlm.add_lora(model, LoRAConfig(targets=(name,)))


def settings(model: Path, data: Path, out: Path, method: str) -> RunConfig:
    return RunConfig(
        method=method,
        out=str(out),
        model=ModelConfig(name=str(model), embeddings="int8"),
        data=DataConfig(train=str(data)),
        lora=LoRAConfig(rank=4),
        train=TrainConfig(steps=12, learning_rate=5e-3, batch_size=4),
    )


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_run_learns_and_its_adapter_fits_the_plain_model(
    method: str, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    result = run(settings(tiny_llama, rows_file, tmp_path / "run", method), progress=False)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    model, _ = graftlm.load_model(str(tiny_llama), quantize=None)
    graftlm.load_adapter(model, result.adapter)


def test_full_fine_tuning_of_them_is_refused(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, rows_file, tmp_path / "run", "full")
    with pytest.raises(ConfigError, match=r"model\.embeddings"):
        run(config, progress=False)
    assert not (tmp_path / "run").exists()

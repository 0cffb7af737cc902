"""Embedding table and head in 8 bits: what they hold, what they compute, who may have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PhiConfig,
)

import graftlm
from graftlm.adapters.report import count_parameters, tied_head
from graftlm.cli._shared import open_model
from graftlm.config import (
    DataConfig,
    LoRAConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    recorded_config,
)
from graftlm.data.batch import Batch
from graftlm.errors import ConfigError, ModelError, TargetError
from graftlm.frozen.embedding import FrozenEmbedding, FrozenOutput
from graftlm.frozen.int8_rows import Int8Rows
from graftlm.frozen.stored_weight import StoredWeight
from graftlm.models import load_weights, quantize_folder
from graftlm.models.int8_embeddings import rows_in_int8
from graftlm.models.save import save_model
from graftlm.planning import choose
from graftlm.report.compare.variants import jobs, variants
from graftlm.training import run
from graftlm.training.adapted_model import adapted_model
from graftlm.training.next_token import next_token_loss
from tests.oracles.tiny_architectures import tiny_model as tiny_architecture

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
    "phi": PhiConfig(**SIZES),  # a bias in the head
    "gpt2": GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4),  # positions by a table
    "opt": OPTConfig(
        vocab_size=300,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=64,
    ),
    "falcon": FalconConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4
    ),
}
TIED = {"gemma3", "gpt2", "opt", "falcon"}


@given(
    rows=st.integers(2, 9),
    columns=st.integers(1, 40),
    spread=st.floats(1e-6, 1e6),
    seed=st.integers(0, 99),
)
def test_no_weight_is_further_off_than_half_a_step(
    rows: int, columns: int, spread: float, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * spread
    weight[:, 0] *= 1e3  # a large feature is no burden on the others
    weight[0] = 0
    before = weight.clone()
    stored = Int8Rows.quantize(weight)
    assert torch.equal(weight, before)
    assert stored.codes.dtype == torch.int8
    step = stored.row_scale[:, None] * stored.feature_scale
    assert ((stored.dequantize() - weight).abs() <= step * 0.5001).all()
    assert (stored.codes[0] == 0).all()
    assert (stored.codes[1:].abs().amax(1) == 127).all()


def made(family: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=dtype).eval()
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        nn.init.normal_(layer.weight, std=0.3)  # logits as far apart as a trained model's
        if getattr(layer, "bias", None) is not None:
            nn.init.normal_(layer.bias)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_model_is_that_of_the_rounded_weights(family: str, dtype: torch.dtype) -> None:
    model, rounded = made(family, dtype), made(family, dtype)
    for layer in {rounded.get_input_embeddings(), rounded.get_output_embeddings()}:
        layer.weight.data = Int8Rows.quantize(layer.weight).dequantize(dtype)
    rows_in_int8(model)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (head.rows is table.rows) == (family in TIED)
    ids = torch.randint(1, 300, (2, 40))
    off = 1e-5 if dtype == torch.float32 else 0.02
    for few in (ids, ids[:1, :5]):
        with torch.no_grad():
            ours, theirs = model(few).logits, rounded(few).logits
        assert ours.dtype == dtype
        assert (ours - theirs).float().norm() < off * theirs.float().norm()
    batch = Batch(ids, ids, tokens=80)
    gradients = []
    for one in (model, rounded):
        one.requires_grad_(False)
        weight = next(p for p in one.base_model.parameters() if p.ndim == 1).requires_grad_(True)
        loss = next_token_loss(one, batch)[0]
        loss.backward()
        gradients.append((loss.detach(), weight.grad.float()))
    (loss, gradient), (their_loss, their_gradient) = gradients
    torch.testing.assert_close(loss, their_loss, rtol=off, atol=0)
    assert (gradient - their_gradient).norm() < 3 * off * their_gradient.norm()


def test_a_tied_head_is_the_table_wherever_it_goes() -> None:
    model = made("gemma3")
    rows_in_int8(model)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert tied_head(model)
    for cast in (model.half, model.bfloat16, model.double, model.float):
        cast()
        assert model(torch.tensor([[5, 6]])).logits.dtype == model.dtype
        assert head.rows is table.rows
        assert (head.rows.codes.dtype, head.rows.row_scale.dtype) == (torch.int8, torch.float32)
    assert count_parameters(model).total == count_parameters(made("gemma3")).total


def test_a_table_that_does_more_than_look_up_is_refused() -> None:
    class Doubled(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + 1

    model = made("llama")
    table = model.get_input_embeddings()
    model.set_input_embeddings(Doubled(300, 64, _weight=table.weight.detach()))
    with pytest.raises(ModelError, match="something of its own"):
        rows_in_int8(model)


def test_an_offset_that_all_words_share_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("phi")
    nn.init.constant_(model.lm_head.bias, -500.0)
    monkeypatch.setattr("graftlm.frozen.int8_rows.LARGEST", 1)  # two bits
    with pytest.raises(ModelError, match="8 bits are too few"):
        rows_in_int8(model)


def test_many_rows_widen_the_head_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftlm.frozen.int8_rows.AT_ONCE", 64)
    head = FrozenOutput(StoredWeight(Int8Rows.quantize(torch.randn(300, 16))), torch.randn(300))
    x = torch.randn(40, 16, dtype=torch.float64, requires_grad=True)
    y = head(x)
    weight = head.rows.frozen.dequantize(torch.float64)
    torch.testing.assert_close(y, x @ weight.T + head.bias)
    (gradient,) = torch.autograd.grad(y.sin().sum(), x)
    torch.testing.assert_close(gradient, y.cos() @ weight)


def test_a_folder_in_nf4_opens_with_them(tiny_llama: Path, tmp_path: Path) -> None:
    quantize_folder(tiny_llama, tmp_path / "nf4")
    model, _ = graftlm.load_model(tmp_path / "nf4", embeddings="int8")
    plain, _ = graftlm.load_model(tmp_path / "nf4")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        ours, theirs = model(ids).logits, plain(ids).logits
    assert (ours - theirs).norm() < 0.05 * theirs.norm()


def test_a_model_that_reads_the_weight_by_itself_is_refused() -> None:
    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="a way of its own"):
        rows_in_int8(AutoModelForCausalLM.from_config(config))


def test_it_is_neither_saved_as_a_plain_model_nor_trained_whole(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    model, tokenizer = graftlm.load_model(tiny_llama, quantize=None, embeddings="int8")
    with pytest.raises(ModelError, match="8 bits"):
        save_model(model, tokenizer, tmp_path / "saved")
    model.model.norm.requires_grad_(True)
    with pytest.raises(TargetError, match="frozen"):
        graftlm.train(model, tokenizer, rows_file, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_loaded_model_holds_a_quarter_of_the_table(tiny_llama: Path, quantize: str) -> None:
    plain = load_weights(tiny_llama, quantize=quantize)
    model = load_weights(tiny_llama, quantize=quantize, embeddings="int8")
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(table, FrozenEmbedding)
    assert isinstance(head, FrozenOutput)
    assert table.rows.codes.nbytes * 4 == plain.get_input_embeddings().weight.nbytes
    assert head.rows is not table.rows
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
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    model, _ = open_model(str(tiny_llama), result.adapter, None, "cpu")  # held as the run held it
    assert isinstance(model.get_output_embeddings(), FrozenOutput)
    model, _ = open_model(str(tiny_llama), result.adapter, "none", "cpu")
    assert not isinstance(model.get_output_embeddings(), FrozenOutput)
    plain, _ = graftlm.load_model(tiny_llama, quantize=None)
    graftlm.load_adapter(plain, result.adapter)


def test_a_comparison_trains_all_weights_with_plain_embeddings(tmp_path: Path) -> None:
    base = RunConfig(model=ModelConfig(name="m", embeddings="int8"))
    columns = variants(["full", "qlora"], [4])
    held = {
        job.config.method: job.config.model.embeddings for job in jobs(base, columns, 1, tmp_path)
    }
    assert held == {"full": "keep", "qlora": "int8"}


def test_how_a_model_in_hand_is_held_is_recorded(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    model, tokenizer = graftlm.load_model(tiny_llama, dtype="bfloat16", embeddings="int8")
    graftlm.add_lora(model, LoRAConfig(rank=2))
    graftlm.train(model, tokenizer, rows_file, TrainConfig(steps=1), out=tmp_path / "run")
    recorded = recorded_config(tmp_path / "run" / "config.yaml").model
    assert (recorded.embeddings, recorded.dtype) == ("int8", "bfloat16")


def test_left_open_they_are_kept_when_no_plan_was_made(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, rows_file, tmp_path / "run", "lora")
    open_ = config.model.model_copy(update={"embeddings": "auto"})
    config = config.model_copy(update={"model": open_})
    assert type(adapted_model(config).get_input_embeddings()) is nn.Embedding
    assert run(config, progress=False).finished
    recorded = recorded_config(tmp_path / "run" / "config.yaml")
    assert recorded.model.embeddings == "keep"
    assert run(config, resume=True, progress=False).finished  # what is left open is no change
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    del saved["model"]["embeddings"]  # as a run that is older than the setting recorded it
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(saved))
    assert run(config, resume=True, progress=False).finished


def test_a_model_that_does_not_say_where_they_are_is_refused() -> None:
    class Silent(nn.Module):
        def get_input_embeddings(self) -> nn.Module:
            raise NotImplementedError

    with pytest.raises(ModelError, match=r"Silent has NoneType.*embeddings=keep"):
        rows_in_int8(Silent())


def test_full_fine_tuning_of_them_is_refused(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, rows_file, tmp_path / "run", "full")
    with pytest.raises(ConfigError, match=r"model\.embeddings"):
        run(config, progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"model\.embeddings"):
        choose(config.model_copy(update={"memory": "8GB"}))


@pytest.mark.parametrize("model_type", ["olmo", "nanochat"])
def test_a_model_whose_norms_have_no_weights_keeps_no_parameter_and_runs(
    model_type: str, tmp_path: Path
) -> None:
    tiny_architecture(model_type).save_pretrained(tmp_path)
    model = load_weights(tmp_path, embeddings="int8")
    assert not list(model.parameters())
    ids = torch.arange(1, 9)[None]
    plain = load_weights(tmp_path)
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids).logits for m in (model, plain))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1

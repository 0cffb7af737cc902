"""Layers that stay dense under QLoRA; the oracle is transformers' own rule, and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.quantizers.quantizers_utils import should_convert_module

import graftlm
from graftlm._compat.dense_layers import dense_layers
from graftlm.adapters import add_lora
from graftlm.adapters.without_gradient import REASON
from graftlm.config import LoRAConfig
from graftlm.frozen.linear import FrozenLinear
from graftlm.models import load_weights
from graftlm.models.load import empty_model
from graftlm.models.quantize import quantize_folder
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.streaming import linear_layers
from tests.oracles.tiny_architectures import tiny_config, tiny_model


@pytest.mark.parametrize("model_type", ["deepseek_v4", "afmoe", "longcat_flash", "llama"])
def test_what_transformers_never_quantises_stays_dense(model_type: str) -> None:
    model: Any = empty_model(tiny_config(model_type))
    names = list(linear_layers(model))
    patterns = list(model._keep_in_fp32_modules or ())
    expected = {name for name in names if not should_convert_module(name, patterns)}
    assert dense_layers(model, names) == expected
    assert bool(expected) == (model_type == "deepseek_v4")


def test_a_folder_of_deepseek_v4_holds_its_compressors_dense(tmp_path: Path) -> None:
    tiny_model("deepseek_v4").save_pretrained(tmp_path / "model")
    quantize_folder(tmp_path / "model", tmp_path / "quantised")
    stored = {key.partition(".weight.")[0] for key in Checkpoint(tmp_path / "quantised")}
    compressors = {key for key in Checkpoint(tmp_path / "model") if "compressor" in key}
    assert compressors <= stored  # under their whole name, as before


def test_gemma_3n_trains_on_four_bits_and_leaves_out_what_training_reads_itself(
    tmp_path: Path,
) -> None:
    tiny_model("gemma3n_text").save_pretrained(tmp_path)
    model: Any = load_weights(tmp_path)
    kinds = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, FrozenLinear)
    }
    assert "q_proj" in kinds
    assert "prediction_coefs" not in kinds
    report = add_lora(model, LoRAConfig(rank=4))
    gone = {name.rpartition(".")[2] for name, why in report.skipped.items() if why == REASON}
    assert gone == {"correction_coefs"}
    model.train()
    ids = torch.arange(1, 17)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    without = [
        name
        for name, adapter in graftlm.adapters.lora_modules(model).items()
        if all(p.grad is None for p in adapter.adapter_parameters().values())
    ]
    assert not without


def test_rows_that_bitsandbytes_misreads_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    quantize_folder(tmp_path / "model", tmp_path / "even")
    assert "AVX-512" not in caplog.text
    quantize_folder(tmp_path / "model", tmp_path / "odd", block_size=128)
    assert "no multiple of the block size 128" in caplog.text

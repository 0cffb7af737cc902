"""What stays in 16 or 32 bits beside layers in a weight format is counted and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm.models import load_weights
from graftlm.models.unquantised import unquantised
from tests.oracles.tiny_architectures import tiny_model


def by_hand(model: Any) -> int:
    """The weights of DBRX's experts: the parameters of two dimensions in no layer."""
    return sum(p.numel() for name, p in model.named_parameters() if ".experts.mlp." in name)


def test_the_joined_experts_of_dbrx_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = tiny_model("dbrx")
    plain.save_pretrained(tmp_path)
    model = load_weights(tmp_path)
    kinds = {kind: n for kind, n in unquantised(model).items() if ".experts.mlp." in kind}
    assert {kind.rpartition(".")[2] for kind in kinds} == {"w1", "v1", "w2"}
    layers = plain.config.n_layers
    assert all(count == layers for count, _ in kinds.values())
    assert sum(weights for _, weights in kinds.values()) == by_hand(plain) > 0
    assert "not in a weight format: transformer.blocks.*.ffn.experts.mlp." in caplog.text


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_moe", "gemma3_text"])
def test_embeddings_and_head_are_no_surprise(
    model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model(model_type).save_pretrained(tmp_path)
    left = unquantised(load_weights(tmp_path))
    assert not [kind for kind in left if "gate" not in kind]  # a router is large in a tiny model
    assert not unquantised(load_weights(tmp_path, quantize=None))


def test_layers_that_stay_dense_are_named(tmp_path: Path) -> None:
    tiny_model("deepseek_v4").to(torch.float32).save_pretrained(tmp_path)
    assert any("compressor" in kind for kind in unquantised(load_weights(tmp_path)))

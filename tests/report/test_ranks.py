"""The report says how much of its rank each layer uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import graftlm
from graftlm.adapters import lora_modules
from graftlm.report.ranks import LayerRank, advice, layer_ranks, rank_rows


def test_norm_and_effective_rank_are_those_of_the_whole_update(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model, _ = graftlm.load_model(tiny_llama, quantize=None)
    config = graftlm.LoRAConfig(rank=4, alpha=12, rank_pattern={"down_proj": 2})
    graftlm.add_lora(model, config)
    adapters: dict[str, Any] = dict(lora_modules(model))
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.lora_B.normal_()
        one = adapters["model.layers.0.self_attn.q_proj"]
        one.lora_B[:, 1:] = 0  # a single direction
    graftlm.save_adapter(model, tmp_path)
    layers = {layer.name: layer for layer in layer_ranks(tmp_path)}
    assert layers.keys() == adapters.keys()
    for name, layer in layers.items():
        S = torch.linalg.svdvals(adapters[name].delta(None).double())
        p = (S / S.sum())[S > 1e-9]
        assert layer.norm == pytest.approx(float(S.norm()), rel=1e-4)
        assert layer.effective == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-3)
    assert layers["model.layers.0.self_attn.q_proj"].effective == pytest.approx(1, abs=1e-3)
    assert layers["model.layers.0.mlp.down_proj"].rank == 2
    rows = dict(rank_rows(list(layers.values())))
    assert "of 2" in rows["down_proj ×2"]
    assert "effective rank 1 to" in rows["q_proj ×2"]


def test_the_advice_names_layers_that_waste_or_lack_rank() -> None:
    layers = [LayerRank("a.q", 16, 2.0, 1.0), LayerRank("a.v", 8, 7.9, 1.0)]
    said = advice(layers)
    assert "1 of 2 layers use less than a quarter of their rank (a.q)" in said
    assert "1 of 2 use all of it (a.v)" in said
    assert advice([LayerRank("a.q", 16, 9.0, 1.0)]).startswith("No layer wastes")
    assert advice([]) == ""


def test_the_page_of_a_run_shows_them(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    from graftlm.report.run_page import run_page

    config = graftlm.RunConfig(
        out=str(tmp_path / "run"),
        method="lora",
        model=graftlm.ModelConfig(name=str(tiny_llama)),
        data=graftlm.DataConfig(train=str(rows_file), max_length=64),
        lora=graftlm.LoRAConfig(rank=4),
        train=graftlm.TrainConfig(steps=2, batch_size=2),
    )
    graftlm.run(config, progress=False)
    page = run_page(tmp_path / "run")
    assert "What each kind of layer has learned" in page
    assert "effective rank" in page

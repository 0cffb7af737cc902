"""A checkpoint in the layout that earlier versions wrote, its names written out by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import graftlm
from graftlm.errors import ArtifactError

SIZES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}


def settings(model: Path, data: Path, out: Path) -> graftlm.RunConfig:
    return graftlm.RunConfig(
        method="lora",
        out=str(out),
        model=graftlm.ModelConfig(name=str(model), embeddings="keep"),
        data=graftlm.DataConfig(train=str(data), max_length=64),
        lora=graftlm.LoRAConfig(rank=4),
        train=graftlm.TrainConfig(steps=4, batch_size=2, save_steps=2),
    )


def old_shapes() -> dict[str, tuple[int, ...]]:
    """`optimizer.safetensors` as it has been written from the first version on."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in (0, 1):
        for module, (rows, columns) in SIZES.items():
            for side, shape in (("lora_A", (4, columns)), ("lora_B", (rows, 4))):
                name = f"model.layers.{layer}.{module}.{side}"
                shapes[f"{name}/step"] = ()
                shapes[f"{name}/exp_avg"] = shapes[f"{name}/exp_avg_sq"] = shape
    return shapes


@pytest.fixture
def whole(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> Path:
    out = tmp_path / "whole"
    graftlm.run(settings(tiny_llama, rows_file, out), progress=False)
    return out


def stopped(whole: Path, folder: Path) -> Path:
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoints" / "step-4")
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(config.replace(str(whole), str(folder)), encoding="utf-8")
    return folder


def test_the_names_of_the_moments_are_the_old_ones(whole: Path) -> None:
    moments = load_file(whole / "checkpoints" / "step-2" / "optimizer.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in moments.items()} == old_shapes()


def test_a_run_stopped_by_an_earlier_version_goes_on_to_the_same_bytes(
    whole: Path, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    """Settings and moments are those of the earlier version: no `variant`, names by hand."""
    out = stopped(whole, tmp_path / "parts")
    lines = (out / "config.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.strip().startswith("variant:")]
    assert len(kept) == len(lines) - 1
    (out / "config.yaml").write_text("".join(kept), encoding="utf-8")
    file = out / "checkpoints" / "step-2" / "optimizer.safetensors"
    moments = load_file(file)
    by_hand = {name: moments[name].clone() for name in old_shapes()}
    file.unlink()
    save_file(by_hand, file)
    config = settings(tiny_llama, rows_file, out)
    assert graftlm.run(config, resume=True, progress=False).finished
    results = [run / "adapter" / "adapter_model.safetensors" for run in (whole, out)]
    assert results[0].read_bytes() == results[1].read_bytes()


def test_moments_of_another_model_are_refused(
    whole: Path, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = stopped(whole, tmp_path / "parts")
    file = out / "checkpoints" / "step-2" / "optimizer.safetensors"
    moments: dict[str, Any] = load_file(file)
    moments["model.layers.9.mlp.up_proj.lora_A/exp_avg"] = torch.zeros(4, 64)
    save_file(moments, file)
    with pytest.raises(ArtifactError, match=r"it trains 'model\.layers\.9"):
        graftlm.run(settings(tiny_llama, rows_file, out), resume=True, progress=False)
    assert json.loads((out / "checkpoints" / "step-2" / "state.json").read_text())["step"] == 2

"""NaN and infinity in an adapter or a model are refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import graftlm
from graftlm.adapters import add_lora
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.errors import ArtifactError, GraftLMError, ModelError
from graftlm.exporting.merge import merge_to_folder
from graftlm.models import load_model
from graftlm.models.quantize import quantize_folder


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Path:
    model, _ = load_model(tiny_llama, quantize=None)
    add_lora(model, LoRAConfig(rank=2))
    save_adapter(model, tmp_path / "adapter", base_name=str(tiny_llama))
    return tmp_path / "adapter"


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "-Infinity", "1e308"])
@pytest.mark.parametrize("key", ["lora_alpha", "alpha_pattern"])
def test_an_alpha_that_is_no_number_is_refused(
    alpha: str, key: str, adapter: Path, tmp_path: Path
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config[key] = "HERE" if key == "lora_alpha" else {"q_proj": "HERE"}
    text = json.dumps(config).replace('"HERE"', alpha)
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(ArtifactError, match=key):
        merge_to_folder(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_such_a_weight_is_refused(
    value: float, adapter: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    key = min(tensors)
    tensors[key][0, 0] = value
    save_file(tensors, file, {"format": "pt"})
    model, _ = load_model(tiny_llama, quantize=None)
    with pytest.raises(ArtifactError, match=f"{key} holds NaN or infinite"):
        load_adapter(model, adapter)
    with pytest.raises(ArtifactError, match="holds NaN or infinite"):
        merge_to_folder(adapter, tmp_path / "out")


def changed(model: Path, folder: Path, change: object) -> Path:
    import shutil

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_norm_that_is_no_number_is_in_no_result(
    tiny_llama: Path, adapter: Path, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    bad = changed(tiny_llama, tmp_path / "bad", spoil)
    for write in (
        lambda: quantize_folder(bad, tmp_path / "out"),
        lambda: merge_to_folder(adapter, tmp_path / "out", base=str(bad)),
    ):
        with pytest.raises(GraftLMError, match=r"model\.norm\.weight would hold NaN"):
            write()
        assert not (tmp_path / "out").exists()


def test_quantize_refuses_a_model_that_lacks_a_weight(tiny_llama: Path, tmp_path: Path) -> None:
    bad = changed(
        tiny_llama, tmp_path / "bad", lambda t: t.pop("model.layers.1.mlp.up_proj.weight")
    )
    with pytest.raises(ModelError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        quantize_folder(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_that_overlap_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    import shutil

    bad = tmp_path / "bad"
    shutil.copytree(tiny_llama, bad)
    data = (bad / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    one, other = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    header[one]["data_offsets"] = header[other]["data_offsets"]
    text = json.dumps(header).encode()
    (bad / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + data[8 + length :]
    )
    with pytest.raises(ModelError, match=r"gate_proj.* overlap"):
        graftlm.load_model(bad)


def test_more_seeds_than_make_sense_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from graftlm.errors import ConfigError
    from graftlm.report.compare import compare

    config = graftlm.RunConfig(
        out=str(tmp_path / "out"),
        model=graftlm.ModelConfig(name=str(tiny_llama)),
        data=graftlm.DataConfig(train="rows.jsonl", eval="rows.jsonl"),
        train=graftlm.TrainConfig(steps=1),
    )
    with pytest.raises(ConfigError, match="--seeds 1000000000: expected 1 to 1000"):
        compare(config, tmp_path / "out", seeds=10**9)

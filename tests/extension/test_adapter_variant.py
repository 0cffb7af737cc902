"""A variant of adapters from outside goes everywhere that LoRA goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import graftlm
from graftlm.adapters import lora_config, lora_parameters
from graftlm.errors import ArtifactError, ConfigError
from tests.extension.scaled_lora import ScaledLoRA

STEPS = 4
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def settings(model: Path, data: Path, out: Path, **changes: Any) -> graftlm.RunConfig:
    return graftlm.RunConfig(
        out=str(out),
        **({"method": "qlora"} | changes),
        model=graftlm.ModelConfig(name=str(model), embeddings="keep"),
        data=graftlm.DataConfig(train=str(data), eval=str(data), max_length=64),
        lora=graftlm.LoRAConfig(rank=4, variant="scaled_lora"),
        train=graftlm.TrainConfig(steps=STEPS, batch_size=4, learning_rate=5e-3, save_steps=2),
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(1, 25).view(2, 12)).logits
    return result


@pytest.fixture(scope="module")
def whole(
    tiny_llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("run") / "whole"
    return out, graftlm.run(settings(tiny_llama, rows_file, out), progress=False)


def test_the_file_takes_at_most_sixty_lines_and_imports_public_names() -> None:
    text = (Path(__file__).parent / "scaled_lora.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert [line for line in text.splitlines() if "graftlm" in line and "import" in line] == [
        "from graftlm.extend import LoRALinear, register_adapter"
    ]


def test_it_starts_as_a_no_op_and_its_own_vector_trains(tiny_llama: Path) -> None:
    model, _ = graftlm.load_model(tiny_llama, quantize="nf4")
    before = logits(model)
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4, variant="scaled_lora"))
    assert torch.equal(logits(model), before)
    assert lora_config(model).variant == "scaled_lora"
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    ids = torch.arange(1, 25).view(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    vectors = [p for name, p in lora_parameters(model) if name.endswith("row_scale")]
    assert len(vectors) == 14
    assert all(vector.grad is not None and vector.grad.any() for vector in vectors)


def test_it_trains_and_saves_by_the_naming_of_peft(whole: tuple[Path, Any]) -> None:
    out, result = whole
    assert result.eval_loss_after < result.eval_loss_before
    tensors = load_file(out / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 3 * 14
    assert {key: tuple(t.shape) for key, t in tensors.items() if key.startswith(PREFIX)} == {
        f"{PREFIX}.lora_A.weight": (4, 64),
        f"{PREFIX}.lora_B.weight": (64, 4),
        f"{PREFIX}.lora_row_scale": (64,),
    }
    assert not torch.equal(tensors[f"{PREFIX}.lora_row_scale"], torch.ones(64))
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "SCALED_LORA"


def test_a_resumed_run_ends_at_the_same_bytes(
    whole: tuple[Path, Any], tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    import shutil

    out, _ = whole
    parts = tmp_path / "parts"
    graftlm.run(settings(tiny_llama, rows_file, parts), progress=False)
    (parts / "summary.json").unlink()
    shutil.rmtree(parts / "adapter")
    shutil.rmtree(parts / "checkpoints" / f"step-{STEPS}")
    assert graftlm.run(settings(tiny_llama, rows_file, parts), resume=True, progress=False).finished
    results = [run / "adapter" / "adapter_model.safetensors" for run in (out, parts)]
    assert results[0].read_bytes() == results[1].read_bytes()


def test_merged_on_disk_and_in_memory_it_is_the_live_model(
    whole: tuple[Path, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    out, _ = whole
    live, _ = graftlm.load_model(tiny_llama, quantize="nf4")
    base = logits(live)
    graftlm.load_adapter(live, out)
    expected = logits(live)
    assert (expected - base).abs().max() > 1e-2
    graftlm.merge_to_folder(out, tmp_path / "merged")
    merged, _ = graftlm.load_model(tmp_path / "merged", quantize=None)
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(logits(graftlm.merge_in_place(live)), expected, rtol=0, atol=5e-5)


def test_without_its_vector_the_folder_is_refused_by_the_missing_key(
    whole: tuple[Path, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import save_file

    out, _ = whole
    shutil.copytree(out / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[f"{PREFIX}.lora_row_scale"]
    save_file(tensors, file)
    model, _ = graftlm.load_model(tiny_llama, quantize=None)
    with pytest.raises(ArtifactError, match=r"missing: .*q_proj\.lora_row_scale"):
        graftlm.load_adapter(model, tmp_path / "adapter")


def test_peft_is_not_handed_what_it_would_read_otherwise(
    whole: tuple[Path, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    from graftlm.exporting import export

    with pytest.raises(ArtifactError, match="PEFT does not know adapters of the variant 'scaled"):
        export(whole[0], "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_variant_is_refused_with_near_matches(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, rows_file, tmp_path / "run")
    wrong = config.lora.model_copy(update={"variant": "scaledlora"})
    with pytest.raises(ConfigError, match="did you mean 'scaled_lora"):
        graftlm.run(config.model_copy(update={"lora": wrong}), progress=False)
    assert not (tmp_path / "run").exists()
    model, _ = graftlm.load_model(tiny_llama, quantize=None)
    with pytest.raises(ConfigError, match=r"lora\.variant='scaledlora'.*did you mean 'scaled_lora"):
        graftlm.add_lora(model, graftlm.LoRAConfig(variant="scaledlora"))
    assert ScaledLoRA.variant == "scaled_lora"

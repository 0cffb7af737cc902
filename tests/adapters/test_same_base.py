"""An adapter on another base than its own is refused, whichever way it is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from graftlm.adapters import add_lora, lora_parameters
from graftlm.adapters.adapter_folder import base_of
from graftlm.adapters.open_model import open_model
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.adapters.same_base import require_same_base
from graftlm.config import LoRAConfig, ModelConfig, RunConfig
from graftlm.errors import ArtifactError
from graftlm.exporting.measured_merge import measured_merge
from graftlm.exporting.merge import merge_to_folder
from graftlm.exporting.target import export
from graftlm.models import load_model
from graftlm.models.quantize import quantize_folder
from graftlm.models.weights_hash import weights_hash
from graftlm.training.origin import origin_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning"),
]
IDS = torch.arange(1, 25).view(2, 12)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def shifted(folder: Path) -> Path:
    """Change the weights in a model folder."""
    file = next(folder.glob("*.safetensors"))
    save_file({k: t + 0.01 for k, t in load_file(file).items()}, file, {"format": "pt"})
    return folder


@pytest.fixture
def base(tmp_path: Path, tiny_llama: Path) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def run(tmp_path: Path, base: Path) -> Path:
    """A run folder with an adapter, and the record that training writes."""
    model, tokenizer = load_model(base, quantize=None)
    torch.manual_seed(1)
    add_lora(model, LoRAConfig(rank=4, alpha=8))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    folder = tmp_path / "run"
    save_adapter(model, folder / "adapter", base_name=str(base), tokenizer=tokenizer)
    config = RunConfig(method="lora", model=ModelConfig(name=str(base)))
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (folder / "provenance.json").write_text(json.dumps(origin_of(config, base, [], [])))
    return folder


def served(run: Path, base: str, _: Path) -> object:
    from graftlm.cli.serve import _opened

    return _opened(base, {"one": str(run)}, None, "cpu", 4)


WAYS: dict[str, Callable[[Path, str, Path], object]] = {
    "eval, generate, chat, studio": lambda run, base, _: open_model(base, str(run), None, "cpu"),
    "serve": served,
    "merge_to_folder": lambda run, base, out: merge_to_folder(run, out, base=base),
    "measured_merge": lambda run, base, out: measured_merge(run, out, base=base, least_kept=0),
    **{
        f"export {to}": lambda run, base, out, to=to: export(run, to, out, base=base)  # type: ignore[misc]
        for to in ("peft", "transformers", "mlx", "vllm")
    },
}


@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_refuses_weights_of_another_hash(
    way: str, run: Path, base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    WAYS[way](run, str(other), tmp_path / "equal")  # a copy is the same base
    shifted(other)
    with pytest.raises(ArtifactError, match="another hash"):
        WAYS[way](run, str(other), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", list(WAYS))
def test_a_base_replaced_under_its_name_is_refused(
    way: str, run: Path, base: Path, tmp_path: Path
) -> None:
    shifted(base)
    with pytest.raises(ArtifactError, match="another hash"):
        WAYS[way](run, base_of(run), tmp_path / "out")


def test_a_form_in_four_bits_cannot_be_compared_and_this_is_said(
    run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize_folder(str(base), tmp_path / "nf4")
    open_model(str(tmp_path / "nf4"), str(run), None, "cpu")
    said = capsys.readouterr().err
    assert "holds them in bitsandbytes: whether it is the same model cannot be compared" in said


def test_a_damaged_record_is_refused(run: Path, base: Path) -> None:
    (run / "provenance.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        require_same_base(run, base)


def test_a_hash_that_is_kept_follows_the_file(base: Path, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    first = weights_hash(base)
    (kept,) = (tmp_path / "cache" / "weights").iterdir()
    assert weights_hash(base) == first
    kept.write_text("{}")  # damaged: the weights are read again
    assert weights_hash(base) == first
    assert weights_hash(shifted(base)) != first


# ----- revisions, beside PEFT and the Hub's own cache


@pytest.fixture
def hub(tmp_path: Path, tiny_llama: Path, monkeypatch: Any) -> dict[str, Path]:
    """A cache of the Hub with two revisions of owner/tiny."""
    repository = tmp_path / "hub" / "models--owner--tiny"
    folders = {}
    for name, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        folders[name] = repository / "snapshots" / commit
        shutil.copytree(tiny_llama, folders[name])
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    shifted(folders["v2"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return folders


@pytest.fixture
def of_v2(hub: dict[str, Path], tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """An adapter of PEFT on revision v2, and its logits."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, revision="v2")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(hub["v2"]), config)
    model.peft_config["default"].base_model_name_or_path = "owner/tiny"
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits(model.eval())


def test_the_adapters_revision_is_opened(of_v2: tuple[Path, torch.Tensor]) -> None:
    adapter, expected = of_v2
    assert base_of(adapter) == "owner/tiny@v2"
    model, _ = open_model(base_of(adapter), str(adapter), None, "cpu")
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)


def test_another_revision_is_refused(of_v2: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    adapter, _ = of_v2
    with pytest.raises(ArtifactError, match=r"commit a{40}\. Name owner/tiny@v2\."):
        open_model("owner/tiny", str(adapter), None, "cpu")
    with pytest.raises(ArtifactError, match="Name owner/tiny@v2"):
        merge_to_folder(adapter, tmp_path / "out", base="owner/tiny")


def test_a_folder_that_names_no_revision_is_said(
    of_v2: tuple[Path, torch.Tensor], base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = load_model(base, quantize=None)
    load_adapter(model, of_v2[0])
    assert "names revision v2 of its base" in capsys.readouterr().err


def test_peft_reads_the_revision_that_was_trained_on(hub: dict[str, Path], tmp_path: Path) -> None:
    model, _ = load_model("owner/tiny@v2", quantize=None)
    add_lora(model, LoRAConfig(rank=4))
    save_adapter(model, tmp_path / "saved")
    config = peft.PeftConfig.from_pretrained(tmp_path / "saved")
    assert (config.base_model_name_or_path, config.revision) == ("owner/tiny", "v2")


# ----- copies of embeddings


def with_embeddings(run: Path, table: torch.Tensor) -> None:
    file = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file) | {"base_model.model.model.embed_tokens.weight": table}
    save_file(tensors, file)


@pytest.mark.parametrize("way", list(WAYS))
def test_trained_embeddings_are_refused_and_untrained_ones_are_left_out(
    way: str, run: Path, base: Path, tmp_path: Path
) -> None:
    table = load_file(next(base.glob("*.safetensors")))["model.embed_tokens.weight"]
    with_embeddings(run, table)
    WAYS[way](run, str(base), tmp_path / "equal")
    with_embeddings(run, table + torch.eye(*table.shape) * 0.1)
    with pytest.raises(ArtifactError, match="differs from the model"):
        WAYS[way](run, str(base), tmp_path / "out")

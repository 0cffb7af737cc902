"""A merge does what the live adapter does, also where the model reads weights itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from graftlm.adapters import lora_parameters, merge_adapters
from graftlm.adapters.fold import fold
from graftlm.adapters.inject import attach
from graftlm.adapters.peft_format import load_adapter
from graftlm.adapters.targets import Target
from graftlm.exporting import left_out
from graftlm.exporting.measured_merge import measured_merge
from graftlm.exporting.merge import merge_to_folder
from graftlm.exporting.merged_weights import updates_of
from graftlm.exporting.rules import broken_rules
from graftlm.frozen.linear import FrozenLinear
from graftlm.models import load_model
from tests.oracles.tiny_architectures import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning"),
]
NAMES = ("backbone.layers.0.mixer.in_proj", "backbone.layers.0.mixer.dt_proj")
IDS = torch.arange(1, 25).view(2, 12)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return result


@pytest.mark.parametrize("model_type", ["mamba", "jamba", "llama", "mixtral", "gpt2"])
def test_a_merge_does_what_the_adapter_does_in_peft(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(model_type).save_pretrained(tmp_path / "base")
    targets = ["in_proj", "x_proj", "dt_proj"] if model_type == "mamba" else "all-linear"
    config = peft.LoraConfig(r=4, target_modules=targets)
    theirs: Any = peft.get_peft_model(tiny_model(model_type), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path / "adapter")
    expected = logits(theirs)
    assert not torch.allclose(expected, logits(tiny_model(model_type)), atol=1e-2)
    report = merge_to_folder(tmp_path / "adapter", tmp_path / "out", base=str(tmp_path / "base"))
    assert ("has no effect and is not merged" in capsys.readouterr().err) == bool(
        report["left_out"]
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), expected, atol=2e-4, rtol=2e-4)

    model = tiny_model(model_type)
    load_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=2e-4)
    before = {id(tensor) for tensor in model.parameters()}
    with torch.no_grad():
        folded = fold(model)
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=2e-4)
    folded.unmerge()
    assert {id(tensor) for tensor in model.parameters()} == before
    in_memory = merge_adapters(model)
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=2e-4)

    dead = {name.rpartition(".")[2] for name in report["left_out"]}
    assert dead == ({"dt_proj"} if model_type in ("mamba", "jamba") else set())
    assert list(in_memory.left_out) == report["left_out"]
    assert not {*in_memory.left_out} & {*in_memory.merged}
    assert ("without effect left out" in str(in_memory)) == bool(dead)
    assert ("has no effect and is not merged" in capsys.readouterr().err) == bool(dead)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_a_model_without_experts_is_asked_without_weights(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights of one number its output layer would be in memory whole, in float32."""
    tiny_model(model_type).save_pretrained(tmp_path / "base")
    theirs: Any = peft.get_peft_model(
        tiny_model(model_type), peft.LoraConfig(r=4, target_modules="all-linear")
    )
    theirs.save_pretrained(tmp_path / "adapter")
    monkeypatch.delattr(left_out, "_of_one_number")
    updates = updates_of(tmp_path / "adapter", tmp_path / "base")
    assert updates.by_name


@pytest.mark.parametrize("to", ["16bit", "nf4"])
@pytest.mark.parametrize("model_type", ["mamba", "jamba"])
def test_the_measured_merge_proves_it_too(
    model_type: str, to: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """It runs the model from the disk, which gives the weights to the module that reads them."""
    base = tmp_path / "base"
    tiny_model(model_type).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    config = peft.LoraConfig(r=4, target_modules=["in_proj", "dt_proj"])
    theirs: Any = peft.get_peft_model(tiny_model(model_type), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path / "adapter")
    options: dict[str, Any] = {"to": to, "base": str(base), "force": to == "nf4"}
    report = measured_merge(tmp_path / "adapter", tmp_path / "out", **options)
    (said,) = broken_rules(tmp_path / "adapter", str(base), ["vllm"])["vllm"]
    assert "dt_proj" in said
    assert "vLLM would apply it" in said
    assert {name.rpartition(".")[2] for name in report["left_out"]} == {"dt_proj"}
    assert not report["proof"]["problems"]
    assert report["proof"]["tensors_left_over"] == 0
    if to == "16bit":
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        torch.testing.assert_close(logits(merged), logits(theirs), atol=2e-4, rtol=2e-4)


def with_trained_biases(folder: Path) -> torch.Tensor:
    """Write Mamba and an adapter of PEFT with biases there; its logits."""
    tiny_model("mamba").save_pretrained(folder / "base")
    config = peft.LoraConfig(r=4, target_modules=["in_proj", "dt_proj"], bias="lora_only")
    theirs: Any = peft.get_peft_model(tiny_model("mamba"), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    theirs.save_pretrained(folder / "adapter")
    return logits(theirs)


def test_a_trained_bias_that_the_model_reads_has_an_effect(tmp_path: Path) -> None:
    expected = with_trained_biases(tmp_path)
    model = tiny_model("mamba")
    load_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=2e-4)
    report = merge_adapters(model)
    assert {name.rpartition(".")[2] for name in report.left_out} == {"dt_proj"}
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=2e-4)
    merge_to_folder(tmp_path / "adapter", tmp_path / "out", base=str(tmp_path / "base"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), expected, atol=2e-4, rtol=2e-4)


def test_a_measured_merge_counts_such_a_bias(tmp_path: Path) -> None:
    expected = with_trained_biases(tmp_path)
    report = measured_merge(tmp_path / "adapter", tmp_path / "out", base=str(tmp_path / "base"))
    assert report["proof"]["tensors_left_over"] == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), expected, atol=2e-4, rtol=2e-4)


def test_weights_in_4_bits_that_the_model_reads(tmp_path: Path, tiny_tokenizer: Any) -> None:
    tiny_model("mamba").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    model: Any = load_model(tmp_path, quantize="nf4")[0]
    assert isinstance(model.backbone.layers[0].mixer.dt_proj, FrozenLinear)
    layers = {name: model.get_submodule(name) for name in NAMES}
    attach(model, [Target(name, layer, 4, 8.0) for name, layer in layers.items()], 0.0, False)
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    expected = logits(model)
    report = merge_adapters(model)
    assert report.left_out == (NAMES[1],)
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=2e-4)


def test_layers_that_text_does_not_reach_are_merged() -> None:
    """Nothing reads them, so that their update, for images, is kept."""
    model = tiny_model("llama")
    model.model.spare = torch.nn.Linear(8, 8)
    places = ("model.layers.0.mlp.up_proj", "model.spare")
    attach(model, [Target(name, model.get_submodule(name), 4, 8.0) for name in places], 0.0, False)
    report = merge_adapters(model)
    assert (report.merged, report.left_out) == (places, ())

"""DoRA is PEFT's DoRA: the same numbers, gradients and files, on dense and 4-bit weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import graftlm
from graftlm.adapters import lora_parameters, train_through_merge
from graftlm.adapters.dora import DoRALinear
from graftlm.adapters.merging import merge_in_place
from graftlm.errors import ConfigError, TargetError
from graftlm.frozen.linear import FrozenLinear, frozen_weight
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4

SETTINGS = graftlm.LoRAConfig(rank=4, alpha=12, variant="dora")
IDS = torch.arange(1, 25).view(2, 12)


def base(kind: str) -> nn.Module:
    if kind == "conv1d":
        return Conv1D(128, 64)
    linear = nn.Linear(64, 128, bias=kind == "linear")
    return FrozenLinear.of(linear, FrozenNF4) if kind == "nf4" else linear


def dense(layer: nn.Module) -> Tensor:
    frozen = frozen_weight(layer.requires_grad_(False))
    assert frozen is not None
    return frozen.dequantize(torch.float32)


def randomised(module: nn.Module) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("magnitude"):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif "lora_" in name:
                parameter.normal_(std=0.2)


def in_peft(layer: DoRALinear, weight: Tensor, dropout: float = 0.0) -> Any:
    plain = nn.Linear(64, 128, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight.clone())
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    config = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=["0"], use_dora=True, lora_dropout=dropout
    )
    model = peft.inject_adapter_in_model(config, nn.Sequential(plain))
    theirs: Any = model[0]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(layer.lora_A)
        theirs.lora_B["default"].weight.copy_(layer.lora_B)
        theirs.lora_magnitude_vector["default"].weight.copy_(layer.magnitude)
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d", "nf4"])
def test_outputs_and_gradients_are_those_of_peft(kind: str, dropout: float) -> None:
    torch.manual_seed(0)
    inner = base(kind)
    weight = dense(inner)
    x = torch.randn(3, 5, 64, requires_grad=True)
    layer = DoRALinear(inner, 4, 12, dropout)
    torch.testing.assert_close(layer.eval()(x), inner(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.magnitude, weight.norm(dim=1), rtol=1e-6, atol=0)
    randomised(layer)
    theirs = in_peft(layer, weight, dropout)
    results = []
    for model in (layer.train(), theirs.train()):
        torch.manual_seed(1)
        y = model(x)
        if model is theirs:
            there = theirs[0]
            own = [
                there.lora_A["default"].weight,
                there.lora_B["default"].weight,
                there.lora_magnitude_vector["default"].weight,
            ]
        else:
            own = list(layer.adapter_parameters().values())
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *own])])
    for ours, peer in zip(*results, strict=True):
        torch.testing.assert_close(ours, peer, rtol=1e-4, atol=1e-4 * float(peer.abs().max()))


@pytest.mark.parametrize("kind", ["linear", "nf4"])
def test_the_merged_weight_computes_the_same(kind: str) -> None:
    layer = DoRALinear(base(kind), 4, 12)
    randomised(layer)
    x = torch.randn(7, 64)
    merged = nn.functional.linear(x, layer.merged(dense(layer.base)), layer.bias)
    torch.testing.assert_close(layer(x), merged, rtol=1e-5, atol=1e-5)


def test_a_row_of_zeros_gives_zeros() -> None:
    inner = nn.Linear(64, 128, bias=False)
    nn.init.zeros_(inner.weight)
    assert torch.equal(DoRALinear(inner, 4, 12)(torch.randn(2, 64)), torch.zeros(2, 128))


def test_after_another_adapter_on_the_base_it_adds_its_own_change() -> None:
    layer = DoRALinear(base("linear"), 4, 12)
    randomised(layer)
    x = torch.randn(7, 64)
    added = layer.added(layer.base, layer.base(x), x)
    torch.testing.assert_close(added, layer(x), rtol=1e-5, atol=1e-5)


def test_peft_and_graftlm_read_each_others_files(tiny_llama: Path, tmp_path: Path) -> None:
    model, _ = graftlm.load_model(tiny_llama, quantize=None)
    graftlm.add_lora(model, SETTINGS)
    randomised(model)
    expected = model(IDS).logits.detach()
    graftlm.save_adapter(model, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["use_dora"] is True
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "ours")).eval()
    torch.testing.assert_close(theirs(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    again, _ = graftlm.load_model(tiny_llama, quantize=None)
    graftlm.load_adapter(again, tmp_path / "theirs")
    assert torch.equal(again(IDS).logits, expected)
    torch.testing.assert_close(merge_in_place(again)(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_it_trains_on_4_bits_and_a_resumed_run_ends_at_the_same_bytes(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    import shutil

    def run(out: Path, **more: Any) -> Any:
        config = graftlm.RunConfig(
            out=str(out),
            method="qlora",
            model=graftlm.ModelConfig(name=str(tiny_llama), embeddings="keep"),
            data=graftlm.DataConfig(train=str(rows_file), eval=str(rows_file), max_length=64),
            lora=SETTINGS,
            train=graftlm.TrainConfig(steps=4, batch_size=4, learning_rate=5e-3, save_steps=2),
        )
        return graftlm.run(config, progress=False, **more)

    result = run(tmp_path / "run")
    assert result.eval_loss_after < result.eval_loss_before
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    whole = file.read_bytes()
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "adapter")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    run(tmp_path / "run", resume=True)
    assert file.read_bytes() == whole
    live, _ = graftlm.load_model(tiny_llama, quantize="nf4")
    graftlm.load_adapter(live, tmp_path / "run")
    graftlm.merge_to_folder(tmp_path / "run", tmp_path / "merged")
    merged, _ = graftlm.load_model(tmp_path / "merged", quantize=None)
    torch.testing.assert_close(merged(IDS).logits, live(IDS).logits, rtol=0, atol=5e-5)


def test_it_is_not_trained_through_the_merge(tiny_llama: Path) -> None:
    model, _ = graftlm.load_model(tiny_llama, quantize="nf4")
    graftlm.add_lora(model, SETTINGS)
    assert any(name.endswith("magnitude") for name, _ in lora_parameters(model))
    with pytest.raises(ConfigError, match="DoRALinear has no such form"):
        train_through_merge(model, lambda name: torch.zeros(1))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_output_layer_of_a_loaded_model_can_be_adapted(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model, _ = graftlm.load_model(tiny_llama, quantize=None)
    targets = ("q_proj", "lm_head")
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4, variant="dora", targets=targets))
    randomised(model)
    graftlm.save_adapter(model, tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        expected = peft.PeftModel.from_pretrained(plain, tmp_path).eval()(IDS).logits
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_module_that_it_does_not_adapt_is_refused_with_its_name(tiny_llama: Path) -> None:
    model, _ = graftlm.load_model(tiny_llama)
    config = graftlm.LoRAConfig(rank=4, variant="dora", targets=("embed_tokens",))
    with pytest.raises(TargetError, match=r"by lora\.variant=dora .* not model\.embed_tokens"):
        graftlm.add_lora(model, config)

"""Layers in host memory: one at a time on the card, and the same numbers as if all were there."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.errors import ConfigError, ModelError
from graftlm.frozen.experts import FrozenExperts
from graftlm.models import load_model, load_weights
from graftlm.models.host_layers import host_layers, layer_sizes, layers_on_host
from graftlm.training import run
from tests.oracles.model_families import tiny_model
from tests.oracles.second_device import CARD, There, second_device

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available.*:UserWarning")


def request(model: Path, rows: Path, out: Path, offload: Any, method: Any) -> RunConfig:
    return RunConfig(
        method=method,
        device="cuda",
        out=str(out),
        model=ModelConfig(name=str(model), offload=offload),
        data=DataConfig(train=str(rows)),
        lora=LoRAConfig(dropout=0.1),
        train=TrainConfig(steps=4, batch_size=2, learning_rate=1e-2, gradient_checkpointing=True),
    )


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_a_run_with_its_layers_on_the_host_is_the_same_run(
    method: str, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    with second_device():
        there = run(request(tiny_llama, rows_file, tmp_path / "a", "none", method), progress=False)
        here = run(request(tiny_llama, rows_file, tmp_path / "b", "layers", method), progress=False)
    assert here.device == "cuda:0 (Card 0)"
    assert there.adapter is not None
    assert here.adapter is not None
    first, second = (
        load_file(Path(folder) / "adapter_model.safetensors")
        for folder in (there.adapter, here.adapter)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_experts_in_four_bits_are_on_the_host_too(
    tiny_tokenizer: Any, rows_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixture"
    tiny_model("mixtral").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    model, _ = load_model(folder, device="cpu")
    stacks = [module for module in model.modules() if isinstance(module, FrozenExperts)]
    held = sum(buffer.nbytes for stack in stacks for buffer in stack.buffers())
    assert sum(layer_sizes(model)) > held > 0
    with second_device():
        there = run(request(folder, rows_file, tmp_path / "a", "none", "qlora"), progress=False)
        here = run(request(folder, rows_file, tmp_path / "b", "layers", "qlora"), progress=False)
    first, second = (
        load_file(Path(one.adapter or "") / "adapter_model.safetensors") for one in (there, here)
    )
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_tensors_from_before_are_let_go(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    model = load_weights(tmp_path, device="cpu")
    stacks = [module for module in model.modules() if isinstance(module, FrozenExperts)]
    before = [weakref.ref(buffer) for stack in stacks for buffer in stack.buffers()]
    with second_device():
        layers_on_host(model, CARD)
        gc.collect()
        assert [ref for ref in before if ref() is not None] == []


def test_one_layer_and_the_next_are_on_the_card_and_the_copies_run_ahead(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[int, int]] = []
    with second_device():
        model, _ = load_model(tiny_llama, device="cpu")
        layers, before = host_layers(model), layer_sizes(model)
        stored = [dict(layer.state_dict()) for layer in layers]
        offloaded = layers_on_host(model, CARD)
        fetch = offloaded._fetch
        monkeypatch.setattr(
            offloaded,
            "_fetch",
            lambda index: (order.append((offloaded._current or 0, index)), fetch(index))[1],
        )
        model(input_ids=torch.tensor([[1, 2, 3]]).to(CARD))
        assert sum(isinstance(slot, There) for slot in offloaded._slots) == 2
        assert layer_sizes(model) == before
        assert sum(block.numel() for block in offloaded._blocks) >= sum(before)
        for layer, tensors in zip(layers, stored, strict=True):
            for name, tensor in layer.state_dict().items():
                assert torch.equal(tensor.to("cpu"), tensors[name])
    wanted = [index for _, index in order]
    assert wanted[0] == 0
    assert wanted[1] == 1  # before layer 0 computes
    assert sorted(set(wanted)) == list(range(len(layers)))


def test_what_has_no_layers_or_nothing_frozen_in_them_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.offload=layers: Linear has no layers"):
        layers_on_host(torch.nn.Linear(2, 2), CARD)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "full"}, "method=full"),
        ({"device": "cpu"}, "model.offload=layers does nothing on cpu"),
        ({"train": TrainConfig(steps=1)}, "train.gradient_checkpointing=false: use true"),
        ({"lora": LoRAConfig(merge_aware="nf4")}, "lora.merge_aware=nf4"),
    ],
)
def test_settings_that_rule_it_out_are_refused(
    changes: dict[str, Any], said: str, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    asked = request(tiny_llama, rows_file, tmp_path / "r", "layers", "qlora")
    with pytest.raises(ConfigError, match=said):
        run(asked.model_copy(update=changes), progress=False)

"""LoRA+ and LoRA-FA take the steps of PEFT's optimisers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import peft.optimizers.lorafa as lorafa
import pytest
import torch
import transformers
from torch import nn

import graftlm
from graftlm.adapters import lora_modules
from graftlm.training.optimizer import adamw, quicker

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
IDS = torch.arange(1, 25).view(2, 12)
RATE = 3e-3
EPSILON = 1e-12
"""PEFT's LoRA-FA adds it before it corrects the moments: with a small one that is the same."""


def pair(folder: Path, **settings: Any) -> tuple[Any, Any]:
    """The same adapters of equal values here and in PEFT."""
    ours, _ = graftlm.load_model(folder, quantize=None, replacements=())
    graftlm.add_lora(ours, graftlm.LoRAConfig(rank=4, alpha=12, **settings))
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = peft.get_peft_model(
        plain, peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear")
    )
    with torch.no_grad():
        for name, adapter in lora_modules(ours).items():
            linear: Any = adapter
            nn.init.normal_(linear.lora_B, std=0.02)
            there = theirs.base_model.model.get_submodule(name)
            there.lora_A["default"].weight.copy_(linear.lora_A)
            there.lora_B["default"].weight.copy_(linear.lora_B)
    return ours, theirs


def steps(model: Any, optimizer: torch.optim.Optimizer, rate_by_group: bool) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        for group in optimizer.param_groups if rate_by_group else ():
            group["lr"] = group["peak_lr"]
        optimizer.step()


def run_of(model: Any, **lora: Any) -> Any:
    train = graftlm.TrainConfig(learning_rate=RATE, adam_epsilon=EPSILON)
    config = graftlm.RunConfig(method="lora", train=train, lora=graftlm.LoRAConfig(**lora))
    return SimpleNamespace(model=model, config=config)


def require_same(ours: Any, theirs: Any) -> None:
    for name, adapter in lora_modules(ours).items():
        linear: Any = adapter
        there = theirs.base_model.model.get_submodule(name)
        for own, peer in (
            (linear.lora_A, there.lora_A["default"].weight),
            (linear.lora_B, there.lora_B["default"].weight),
        ):
            torch.testing.assert_close(own, peer, rtol=0, atol=RATE * 0.05)


def test_lora_plus_steps_as_in_peft(tiny_llama: Path) -> None:
    ours, theirs = pair(tiny_llama)
    assert len(quicker(ours)) == 14
    own = adamw(run_of(ours, plus_ratio=8.0), [p for p in ours.parameters() if p.requires_grad])
    peer = peft.optimizers.create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=8.0, eps=EPSILON
    )
    assert {group["peak_lr"] for group in own.param_groups} == {RATE, 8 * RATE}
    steps(ours.train(), own, True)
    steps(theirs.train(), peer, False)
    require_same(ours, theirs)


def test_lora_fa_steps_as_in_peft(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)  # it would project in 16 bits
    ours, theirs = pair(tiny_llama, freeze_a=True)
    trained = [p for p in ours.parameters() if p.requires_grad]
    assert len(trained) == 14
    before = {name: a.lora_A.clone() for name, a in lora_modules(ours).items()}  # type: ignore[attr-defined]
    own = adamw(run_of(ours, freeze_a=True), trained)
    peer = peft.optimizers.create_lorafa_optimizer(theirs, r=4, lora_alpha=12, lr=RATE)
    peer.param_groups[0]["eps"] = EPSILON
    steps(ours.train(), own, True)
    steps(theirs.train(), peer, False)
    require_same(ours, theirs)
    for name, adapter in lora_modules(ours).items():
        assert torch.equal(adapter.lora_A, before[name])  # type: ignore[arg-type]


def test_without_a_gradient_of_a_no_input_is_kept(tiny_llama: Path) -> None:
    sizes = []
    for freeze_a in (False, True):
        model, _ = graftlm.load_model(tiny_llama, quantize=None)
        graftlm.add_lora(model, graftlm.LoRAConfig(rank=2, freeze_a=freeze_a))
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = model(input_ids=IDS).logits
        sizes.append(sum(kept.values()))
        del logits
    assert sizes[1] < sizes[0]


def test_layers_by_index_are_those_of_peft(tiny_llama: Path, tmp_path: Path) -> None:
    model, _ = graftlm.load_model(tiny_llama, quantize=None)
    chosen: Any = {"targets": ("q_proj", "down_proj"), "layers": [1], "layers_pattern": ["layers"]}
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=2, **chosen))
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=[1],
        layers_pattern=["layers"],
    )
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert list(lora_modules(model)) == peft.get_peft_model(plain, config).targeted_module_names
    graftlm.save_adapter(model, tmp_path)
    again, _ = graftlm.load_model(tiny_llama, quantize=None)
    graftlm.load_adapter(again, tmp_path)
    assert list(lora_modules(again)) == list(lora_modules(model))
    with pytest.raises(graftlm.errors.TargetError, match="no target stands in these layers"):
        graftlm.add_lora(again, graftlm.LoRAConfig(layers=[7]), name="b")

"""Several named adapters on one base: what each of them and their sum does, beside PEFT."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from graftlm.adapters import (
    activate,
    active_adapters,
    adapter_names,
    add_lora,
    disable_adapters,
    lora_modules,
    lora_parameters,
    merge_adapters,
    remove,
)
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.errors import TargetError
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from tests.oracles.model_families import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no longer tied:UserWarning"),
]

IDS = torch.arange(1, 25).view(2, 12)
TARGETS = {
    "llama": {"a": ("q_proj", "embed_tokens"), "b": ("q_proj", "down_proj"), "c": "all-linear"},
    "gpt2": {"a": ("c_attn",), "b": ("c_attn", "mlp.c_proj"), "c": ("c_attn", "c_fc")},
}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def with_three(family: str) -> nn.Module:
    model = tiny_model(family)
    for rank, (name, targets) in enumerate(TARGETS[family].items(), 2):
        add_lora(model, LoRAConfig(rank=rank, alpha=8, targets=targets), name=name)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    return model


def in_peft(model: nn.Module, family: str, folder: Path) -> peft.PeftModel:
    """PEFT's model with the same adapters, read from what each is saved as."""
    for name in adapter_names(model):
        save_adapter(model, folder / name, adapter=name)
    first, *others = adapter_names(model)
    theirs = peft.PeftModel.from_pretrained(tiny_model(family), folder / first, adapter_name=first)
    for name in others:
        theirs.load_adapter(folder / name, adapter_name=name)
    return theirs.eval()


@pytest.mark.parametrize("family", list(TARGETS))
def test_any_of_them_active_gives_the_logits_of_peft(family: str, tmp_path: Path) -> None:
    model = with_three(family)
    theirs = in_peft(model, family, tmp_path)
    seen = [logits(tiny_model(family))]
    for count in (1, 2, 3):
        for names in combinations("abc", count):
            activate(model, *names)
            theirs.base_model.set_adapter(list(names))
            assert active_adapters(model) == list(names)
            seen.append(logits(model))
            torch.testing.assert_close(seen[-1], logits(theirs), rtol=1e-5, atol=2e-5)
    assert all((a - b).abs().max() > 1e-3 for a, b in combinations(seen, 2))
    activate(model)
    assert torch.equal(logits(model), seen[0])


def test_over_4_bits_the_sum_is_that_of_the_dequantised_base() -> None:
    model = tiny_model("llama")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            model.set_submodule(name, FrozenLinear.of(module, FrozenNF4))
    for name in "ab":
        add_lora(model, LoRAConfig(rank=4, targets=("q_proj", "up_proj")), name=name)
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    activate(model, "a", "b")
    expected = logits(model)
    report = merge_adapters(model)
    assert len(report.merged) == 4
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=5e-5)
    assert not adapter_names(model)


def test_the_sum_of_the_active_ones_is_merged_and_the_others_are_dropped() -> None:
    model = with_three("llama")
    activate(model, "a", "c")
    expected = logits(model)
    merge_adapters(model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=2e-5)
    kinds = {n: type(m) for n, m in tiny_model("llama").named_modules()}
    assert {n: type(m) for n, m in model.named_modules()} == kinds


def test_the_first_is_active_and_trains_and_the_others_do_neither() -> None:
    model = with_three("llama")
    assert adapter_names(model) == ["a", "b", "c"]
    assert active_adapters(model) == ["a"]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for _, p in lora_parameters(model, "a")}
    activate(model, "b", "c")
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name in "abc":
        for where, parameter in lora_parameters(model, name):
            assert (parameter.grad is not None) == (name != "a"), where
            assert model.get_parameter(where) is parameter


def test_taking_one_away_leaves_the_others_as_they_were() -> None:
    model = with_three("llama")
    activate(model, "b")
    expected = logits(model)
    remove(model, "a")
    remove(model, "c")
    assert adapter_names(model) == ["b"]
    assert torch.equal(logits(model), expected)
    assert all(type(module).__name__ == "LoRALinear" for module in lora_modules(model).values())
    alone = tiny_model("llama")
    add_lora(alone, LoRAConfig(rank=3, targets=TARGETS["llama"]["b"]), name="b")
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in alone.named_parameters()]
    remove(model)
    assert torch.equal(logits(model), logits(tiny_model("llama")))


def test_one_active_beside_others_gives_the_bits_that_it_gives_alone(tmp_path: Path) -> None:
    model = with_three("llama")
    save_adapter(model, tmp_path, adapter="c")
    alone = tiny_model("llama")
    load_adapter(alone, tmp_path)
    activate(model, "c")
    assert torch.equal(logits(model), logits(alone))


def test_loading_under_another_name_leaves_the_first_alone(tmp_path: Path) -> None:
    model = with_three("llama")
    save_adapter(model, tmp_path / "c", adapter="c")
    other = tiny_model("llama")
    add_lora(other, LoRAConfig(rank=4))
    before = logits(other)
    report = load_adapter(other, tmp_path / "c", name="second")
    assert len(report.adapted) == 14
    assert active_adapters(other) == ["default"]
    assert torch.equal(logits(other), before)
    activate(other, "second")
    activate(model, "c")
    assert torch.equal(logits(other), logits(model))


def test_disabling_switches_all_off_and_restores_the_choice() -> None:
    model = with_three("llama")
    activate(model, "b", "c")
    on = logits(model)
    with disable_adapters(model):
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert active_adapters(model) == ["b", "c"]
    assert torch.equal(logits(model), on)


def test_names_that_are_taken_missing_or_open_are_refused(tmp_path: Path) -> None:
    model = with_three("llama")
    with pytest.raises(TargetError, match="already has adapters called 'a'"):
        add_lora(model, LoRAConfig(rank=2), name="a")
    with pytest.raises(TargetError, match="no adapter 'd'; it has a, b, c"):
        activate(model, "d")
    with pytest.raises(TargetError, match="no adapter 'd'"):
        save_adapter(model, tmp_path, adapter="d")
    activate(model, "a", "b")
    with pytest.raises(TargetError, match="say which one"):
        save_adapter(model, tmp_path)


def test_a_module_with_several_answers_for_its_base() -> None:
    model = with_three("llama")
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.weight is layer.base.weight
    assert layer.in_features == 64
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = layer.nothing

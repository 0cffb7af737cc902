"""Weighted combinations of adapters are those of PEFT's `add_weighted_adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import graftlm
from graftlm.adapters import activate, lora_modules, lora_parameters, remove
from graftlm.adapters.combine import COMBINATIONS, combine_adapters
from graftlm.errors import ConfigError, TargetError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*multiple adapters:UserWarning"),
]
IDS = torch.arange(1, 25).view(2, 12)
WEIGHTS = {"a": 0.7, "b": -0.4}


def with_two(folder: Path, ranks: tuple[int, int] = (4, 4)) -> Any:
    model, _ = graftlm.load_model(folder, quantize=None)
    for name, rank, targets in (
        ("a", ranks[0], ("q_proj", "up_proj")),
        ("b", ranks[1], ("q_proj",)),
    ):
        graftlm.add_lora(model, graftlm.LoRAConfig(rank=rank, alpha=12, targets=targets), name=name)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_it_is_that_of_peft(tiny_llama: Path, tmp_path: Path, combination: str) -> None:
    model = with_two(tiny_llama)
    for name in WEIGHTS:
        graftlm.save_adapter(model, tmp_path / name, adapter=name)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "a"), adapter_name="a").eval()
    theirs.load_adapter(str(tmp_path / "b"), "b")
    more = {} if combination in ("cat", "svd", "linear") else {"density": 0.6}
    torch.manual_seed(2)
    theirs.base_model.add_weighted_adapter(
        ["a", "b"], list(WEIGHTS.values()), "c", combination_type=combination, **more
    )
    theirs.set_adapter("c")
    torch.manual_seed(2)
    combine_adapters(model, WEIGHTS, "c", combination=combination, **more)
    before = model(IDS).logits
    activate(model, "a")
    torch.testing.assert_close(before, model(IDS).logits)  # the new one starts inactive
    activate(model, "c")
    rtol = {"rtol": 1e-4, "atol": 1e-4}
    if combination.startswith("dare"):  # drawn in another order of the modules
        assert model(IDS).logits.isfinite().all()
        name = "model.layers.0.self_attn.q_proj"
        own: Any = lora_modules(model, "c")[name]
        assert own.rank == theirs.base_model.model.get_submodule(name).r["c"]
        return
    torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, **rtol)


def test_dare_is_that_of_peft_from_one_seed() -> None:
    from peft.utils import merge_utils

    from graftlm.adapters.combine import _by_rule

    torch.manual_seed(0)
    tensors = [torch.randn(6, 5) for _ in range(3)]
    weights = [0.5, -1.0, 2.0]
    for rule in ("dare_linear", "dare_ties"):
        torch.manual_seed(3)
        own = _by_rule(rule, tensors, weights, 0.4)
        torch.manual_seed(3)
        peer = getattr(merge_utils, rule)(tensors, torch.tensor(weights), 0.4)
        torch.testing.assert_close(own, peer)


def test_cat_is_the_sum_and_the_others_can_go(tiny_llama: Path, tmp_path: Path) -> None:
    model = with_two(tiny_llama, (2, 6))
    combine_adapters(model, {"a": 1.0, "b": 1.0}, "sum")
    activate(model, "a", "b")
    expected = model(IDS).logits.detach()
    activate(model, "sum")
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    for name in WEIGHTS:
        remove(model, name)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    graftlm.save_adapter(model, tmp_path)
    again, _ = graftlm.load_model(tiny_llama, quantize="nf4")  # one base, adapters come and go
    graftlm.load_adapter(again, tmp_path, name="first")
    graftlm.load_adapter(again, tmp_path, name="second")
    activate(again, "second")
    remove(again, "first")
    assert list(lora_modules(again)) == list(lora_modules(model))


def test_what_cannot_be_combined_is_refused(tiny_llama: Path) -> None:
    model = with_two(tiny_llama, (2, 6))
    with pytest.raises(ConfigError, match=r"needs equal ranks, and those at .*q_proj are \[2, 6\]"):
        combine_adapters(model, WEIGHTS, "c", combination="ties")
    with pytest.raises(ConfigError, match="expected one of cat, svd"):
        combine_adapters(model, WEIGHTS, "c", combination="tie")
    with pytest.raises(TargetError, match="no adapter 'z'"):
        combine_adapters(model, {"z": 1.0}, "c")
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=2, variant="dora"), name="d")
    with pytest.raises(TargetError, match="DoRALinear: only LoRA"):
        combine_adapters(model, {"a": 1.0, "d": 1.0}, "c")

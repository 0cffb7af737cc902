"""Experts that transformers computes by code of their own: stored, adapted, saved, merged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from graftlm.adapters import add_lora, lora_config, lora_modules, lora_parameters, merge_in_place
from graftlm.adapters.fold import fold
from graftlm.adapters.lora_experts import LoRAExperts
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.exporting.measured_merge import measured_merge
from graftlm.exporting.merge import merge_to_folder
from graftlm.frozen.experts import FrozenExperts
from graftlm.models import load_model
from graftlm.models.quantize import quantize_folder
from graftlm.models.unquantised import unquantised
from tests.oracles.mixtures import BOTH, LEAVES, OWN_CODE, tiny_mixture
from tests.oracles.peft_experts import IDS, draw, logits, require_same_in_peft

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
]
LINEAR = {"jetmoe": ("kv_proj",)}


def settings(kind: str, parameters: slice = slice(None), **more: Any) -> LoRAConfig:
    names = LEAVES.get(kind, BOTH)[parameters]
    chosen = {"rank": 4, "alpha": 8, "targets": LINEAR.get(kind, ("o_proj",))}
    return LoRAConfig(**(chosen | {"target_parameters": names} | more))


def drawn(model: Any, config: LoRAConfig) -> Any:
    """``model`` with random adapters on its experts and on a linear layer of each layer."""
    add_lora(model, config)
    draw(model)
    return model


@pytest.mark.parametrize(
    "parameters", [slice(None), slice(1), slice(1, 2)], ids=["all", "up", "down"]
)
@pytest.mark.parametrize("kind", OWN_CODE)
def test_peft_computes_the_same_from_our_file(kind: str, parameters: slice, tmp_path: Path) -> None:
    model = drawn(tiny_mixture(kind), settings(kind, parameters))
    require_same_in_peft(model, kind, tmp_path)


@pytest.mark.parametrize("kind", OWN_CODE)
def test_we_compute_the_same_from_pefts_file(kind: str, tmp_path: Path) -> None:
    names = LEAVES.get(kind, BOTH)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=list(LINEAR.get(kind, ("o_proj",))),
        target_parameters=list(names),
        rank_pattern={names[0]: 6},
        use_rslora=True,
    )
    theirs = peft.get_peft_model(tiny_mixture(kind), config)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    model = tiny_mixture(kind)
    report = load_adapter(model, tmp_path)
    assert {rank for name, rank in report.adapted.items() if name.endswith(names[0])} == {6}
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=2e-5)
    assert {*lora_config(model).target_parameters} == {*names}
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(logits(merge_in_place(model)), logits(merged), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("version", ["0.18.1", "0.21.2"])
def test_a_square_weight_of_llama_4_is_read_by_the_version(version: str, tmp_path: Path) -> None:
    """Since 0.19 PEFT takes the inputs of these experts for outputs."""
    from graftlm.adapters.peft_expert_keys import turned_round
    from graftlm.models.experts import expert_weights

    plain = tiny_mixture("llama4_text")
    name, weight = next(iter(expert_weights(plain).items()))
    setattr(weight.module, weight.leaf, torch.nn.Parameter(torch.zeros(4, 8, 8)))
    stack = type("Square", (), {"shape": (4, 8, 8), "transposed": True})()
    A, B = torch.randn(12, 8), torch.randn(8, 12)
    state = {"lora_A.weight": A, "lora_B.weight": B}
    found = turned_round({name: state}, plain, {name: stack}, version)[name]
    first, second = B.unflatten(1, (3, 4)), A.unflatten(0, (4, 3))
    order = "o r e, e r i -> e i o" if version == "0.18.1" else "o r e, e r i -> e o i"
    change = torch.einsum(order, first, second)  # of the parameter [E, in, out]
    ours = torch.einsum(
        "o r e, e r i -> e i o",
        found["lora_B.weight"].unflatten(1, (3, 4)),
        found["lora_A.weight"].unflatten(0, (4, 3)),
    )
    torch.testing.assert_close(ours, change)


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("kind", OWN_CODE)
def test_loaded_trained_folded_and_merged(
    kind: str, quantize: str | None, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    tiny_mixture(kind).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    model: Any = load_model(tmp_path, quantize=quantize)[0]
    stored = [m for m in model.modules() if isinstance(m, FrozenExperts)]
    assert bool(stored) == (quantize is not None)
    assert not [kind for kind in unquantised(model) if "router" not in kind and "gate" not in kind]
    report = add_lora(model, settings(kind))
    adapters = [m for m in lora_modules(model).values() if isinstance(m, LoRAExperts)]
    assert len(adapters) == sum(name.endswith(LEAVES.get(kind, BOTH)) for name in report.adapted)
    optimizer = torch.optim.AdamW([p for _, p in lora_parameters(model)], lr=5e-3)
    losses = []
    for _ in range(10):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        assert all(a.lora_B.grad is not None for a in adapters)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    model.eval()
    live = logits(model)
    torch.testing.assert_close(logits(copy.deepcopy(model)), live, rtol=0, atol=0)
    folded = fold(model)
    torch.testing.assert_close(logits(model), live, rtol=1e-4, atol=2e-5)
    folded.unmerge()
    torch.testing.assert_close(logits(model), live, rtol=0, atol=0)
    merged = merge_in_place(model)
    torch.testing.assert_close(logits(merged), live, rtol=1e-4, atol=2e-5)
    names = [name for name, _ in tiny_mixture(kind).named_parameters()]
    assert [name for name, _ in merged.named_parameters()] == names


@pytest.mark.parametrize("kind", OWN_CODE)
def test_merged_on_disk(kind: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    base = tmp_path / "base"
    tiny_mixture(kind).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    model = drawn(load_model(base, quantize=None)[0], settings(kind))
    save_adapter(model, tmp_path / "adapter", base_name=str(base))
    merge_to_folder(tmp_path / "adapter", tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=2e-5)
    report = measured_merge(tmp_path / "adapter", tmp_path / "measured")
    assert report["kept"] > 0.999
    assert not report["proof"]["problems"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "measured")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", OWN_CODE)
def test_a_4_bit_folder_holds_the_same_experts(
    kind: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    tiny_mixture(kind).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    report = quantize_folder(str(tmp_path / "base"), tmp_path / "nf4")
    direct = load_model(tmp_path / "base")[0]
    opened = load_model(tmp_path / "nf4")[0]
    stored = [m for m in opened.modules() if isinstance(m, FrozenExperts)]
    assert report["quantized_experts"] == sum(len(m.matrices()) for m in stored) > 0
    torch.testing.assert_close(logits(opened), logits(direct), rtol=0, atol=0)

"""Requests for parts that train beside the adapters: what trains, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftlm.adapters import add_lora, lora_modules, merge_adapters
from graftlm.adapters.fold import fold
from graftlm.config import LoRAConfig, ModelConfig
from graftlm.errors import ConfigError, ModelError, TargetError
from graftlm.frozen.formats import format_named
from graftlm.frozen.linear import FrozenLinear
from graftlm.models.capabilities import capabilities
from tests.oracles.model_families import tiny_model

IDS = torch.arange(1, 25).view(2, 12)


def adapted(family: str, **settings: Any) -> Any:
    model = tiny_model(family)
    add_lora(model, LoRAConfig(**({"rank": 4, "targets": ("q_proj",)} | settings)))
    return model


def nudge(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ("lm_head", "norm")},
        {"trainable_token_indices": (3, 270)},
        {"bias": "all", "lora_bias": True},
    ],
)
def test_the_first_step_equals_the_base_and_every_part_learns(settings: dict[str, Any]) -> None:
    base, model = tiny_model("qwen2"), adapted("qwen2", **settings)
    torch.testing.assert_close(logits(model)[..., :260], logits(base), rtol=0, atol=1e-6)
    nudge(model)
    model(input_ids=torch.cat((IDS, IDS * 0 + 3), 1)).logits.square().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and float(p.grad.norm()) > 0 for p in trained)


def test_a_tied_table_and_head_train_as_one_parameter_and_stay_tied_in_a_merge() -> None:
    model = adapted("gemma3", modules_to_save=("lm_head",))
    parts = {name: m for name, m in lora_modules(model).items() if not m.rank}
    assert list(parts) == ["model.embed_tokens", "lm_head"]
    table, head = parts.values()
    assert table.trained("weight") is head.trained("weight")
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert size == 260 * 64 + 2 * 4 * (64 + 64)
    nudge(model)
    expected = logits(model)
    report = merge_adapters(model)
    assert not report.untied
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_a_tied_head_is_untied_only_if_that_is_asked_for_and_the_report_says_so() -> None:
    model = tiny_model("gemma3")
    report = add_lora(
        model,
        LoRAConfig(
            rank=4, targets=("q_proj",), modules_to_save=("lm_head",), ensure_weight_tying=False
        ),
    )
    assert report.trained == {"lm_head": "whole"}
    assert any("merging it unties the two" in note for note in report.notes)
    nudge(model)
    expected = logits(model)
    assert merge_adapters(model).untied
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_rows_past_the_end_make_the_table_longer() -> None:
    model = adapted("gemma3", trainable_token_indices=(260, 262))
    assert model.config.vocab_size == 263
    assert logits(model).shape[-1] == 263
    table = model.get_input_embeddings().base.weight
    torch.testing.assert_close(table[261], table[:260].mean(0))
    assert model.lm_head.base.weight is table
    nudge(model)
    expected = logits(model)
    merge_adapters(model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ("lm_head", "norm")},
        {"trainable_token_indices": (3, 7)},
        {"bias": "all"},
        {"bias": "lora_only", "lora_bias": True, "dropout": 0.1},
    ],
)
@pytest.mark.parametrize("family", ["qwen2", "opt", "gemma3"])
def test_folding_computes_the_same_and_is_undone(settings: dict[str, Any], family: str) -> None:
    names = ("final_layer_norm",) if family == "opt" else settings.get("modules_to_save", ())
    settings = settings | ({"modules_to_save": names} if "modules_to_save" in settings else {})
    model = adapted(family, **settings)
    nudge(model)
    expected = logits(model)
    folded = fold(model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    folded.unmerge()
    assert torch.equal(logits(model), expected)


def test_the_loss_of_a_whole_head_needs_no_logits() -> None:
    head = capabilities(adapted("llama", modules_to_save=("lm_head",))).output_head
    assert head is not None
    assert head.weight.requires_grad


def test_16_bit_weights_train_in_32_bits() -> None:
    model = tiny_model("llama", torch.bfloat16)
    add_lora(model, LoRAConfig(rank=4, targets=("q_proj",), modules_to_save=("lm_head", "norm")))
    head = lora_modules(model)["lm_head"]
    assert head.trained("weight").dtype == torch.float32
    assert head.weight.dtype == torch.bfloat16
    assert model(input_ids=IDS).logits.dtype == torch.bfloat16
    nudge(model)
    expected = logits(model)
    merge_adapters(model)
    assert model.lm_head.weight.dtype == torch.bfloat16
    gap = (logits(model).float() - expected.float()).std()
    assert gap < 2e-2 * expected.float().std()  # the low-rank update is rounded, the rest is not


def quantized(family: str) -> Any:
    model = tiny_model(family)
    for name, layer in list(model.named_modules()):
        if type(layer) is torch.nn.Linear and "layers" in name:
            stored = FrozenLinear.of(layer, format_named("nf4"), ModelConfig())
            model.set_submodule(name, stored)
    return model


def test_biases_of_4_bit_layers_train() -> None:
    model = quantized("opt")
    add_lora(model, LoRAConfig(rank=4, targets=("q_proj",), bias="all", lora_bias=True))
    nudge(model)
    model(input_ids=IDS).logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    expected = logits(model)
    merge_adapters(model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"modules_to_save": ("lm_haed",)}, "matches no module; did you mean 'lm_head'"),
        ({"modules_to_save": ("mlp",)}, "cannot train whole: its weights are held in nf4"),
        ({"modules_to_save": ("layers",)}, "every target is in modules_to_save"),
        ({"trainable_token_indices": (3, 3)}, "an index is named twice"),
        ({"trainable_token_indices": {"q_proj": (3,)}}, "is adapted too"),
        ({"trainable_token_indices": {"k_proj": (3,)}}, "is no table or head in 16 or 32 bits"),
        ({"trainable_token_indices": {"lm_head": (300,)}}, "vocabulary"),
        (
            {"trainable_token_indices": (3,), "modules_to_save": ("embed_tokens",)},
            "its rows train already",
        ),
        ({"lora_bias": True, "variant": "dora"}, "trains no such biases"),
    ],
)
def test_what_cannot_be_had_is_refused_and_the_model_is_unchanged(
    settings: dict[str, Any], said: str
) -> None:
    model = quantized("llama")
    before = [name for name, _ in model.named_modules()]
    if said == "vocabulary":
        add_lora(model, LoRAConfig(rank=4, targets=("q_proj",), **settings))
        assert model.config.vocab_size == 301
        return
    with pytest.raises(TargetError, match=said):
        add_lora(model, LoRAConfig(rank=4, targets=("q_proj",), **settings))
    assert [name for name, _ in model.named_modules()] == before


def test_a_bias_without_a_place_is_refused_in_a_merge_before_anything_changes() -> None:
    model = adapted("llama", lora_bias=True)
    with pytest.raises(ConfigError, match="the adapted layer has none that a merge could change"):
        merge_adapters(model)
    assert len(lora_modules(model)) == 2


def test_a_mistaken_index_makes_no_huge_table() -> None:
    with pytest.raises(ModelError, match="at most 65536 new ones; check the token ids"):
        adapted("llama", trainable_token_indices=(10_000_000,))

"""Modules trained whole, trained rows and biases: the same in PEFT, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from graftlm.adapters import (
    add_lora,
    disable_adapters,
    lora_config,
    lora_parameters,
    merge_in_place,
)
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.errors import ArtifactError
from tests.oracles.model_families import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no longer tied:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*bias:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*ensure_weight_tying:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*bias:peft.utils.warning.PeftWarning"),
]

IDS = torch.arange(1, 25).view(2, 12)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "head": ("llama", {"modules_to_save": ["lm_head"]}),
    "both-ends": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "every-norm": ("gemma3", {"modules_to_save": ["norm"]}),
    "scaled-table-untied": ("gemma3", {"modules_to_save": ["embed_tokens"]}),
    "tied": ("gemma3", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "tied-by-the-head": ("gpt2", {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
    "tied-in-no-name": (
        "falcon",
        {"modules_to_save": ["word_embeddings"], "ensure_weight_tying": True},
    ),
    "whole-layer": ("llama", {"modules_to_save": ["layers.1.mlp"]}),
    "conv1d": ("gpt2", {"modules_to_save": ["h.0.mlp.c_fc"], "target_modules": ["c_attn"]}),
    "rows": ("llama", {"trainable_token_indices": [7, 3, 20]}),
    "rows-of-a-scaled-tied-table": ("gemma3", {"trainable_token_indices": [7, 3, 20]}),
    "rows-with-padding": ("mistral", {"trainable_token_indices": [0, 5]}),
    "rows-by-module": (
        "llama",
        {"trainable_token_indices": {"embed_tokens": [5, 6], "lm_head": [6, 9]}},
    ),
    "own-biases": ("qwen2", {"bias": "lora_only"}),
    "every-bias": ("opt", {"bias": "all", "target_modules": ["q_proj", "fc1"]}),
    "bias-of-dora": ("opt", {"bias": "all", "use_dora": True, "lora_dropout": 0.1}),
    "bias-of-conv1d": ("gpt2", {"bias": "all", "target_modules": ["c_attn"]}),
    "bias-of-the-update": ("qwen2", {"lora_bias": True}),
    "bias-without-one": ("llama", {"lora_bias": True}),
}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


LAYERS = {"gpt2": ["c_attn"], "falcon": ["query_key_value"]}


def theirs(case: str, folder: Path | None = None) -> peft.PeftModel:
    family, settings = CASES[case]
    targets = LAYERS.get(family, ["q_proj"])
    defaults = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": targets}
    model = peft.get_peft_model(tiny_model(family), peft.LoraConfig(**(defaults | settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    if folder is not None:
        model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_what_peft_trained_gives_the_same_logits_gradients_and_merge_here(
    case: str, tmp_path: Path
) -> None:
    model = theirs(case, tmp_path)
    mine = tiny_model(CASES[case][0])
    before = logits(mine)
    load_adapter(mine, tmp_path)
    torch.testing.assert_close(logits(mine), logits(model), rtol=0, atol=1e-5)
    with disable_adapters(mine):
        torch.testing.assert_close(logits(mine), before, rtol=0, atol=1e-5)
    target = torch.randn_like(before)
    (mine(input_ids=IDS).logits * target).sum().backward()
    (model(input_ids=IDS).logits * target).sum().backward()
    norms = sorted(float(p.grad.norm()) for _, p in lora_parameters(mine) if p.grad is not None)
    expected = {
        id(p): float(p.grad.norm()) for p in model.parameters() if p.grad is not None
    }.values()
    assert norms == pytest.approx(sorted(expected), rel=1e-3, abs=1e-5)
    if case != "bias-without-one":  # PEFT refuses to merge it, and so do we
        merged = logits(merge_in_place(mine))
        torch.testing.assert_close(merged, logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_what_was_trained_here_gives_the_same_logits_in_peft(case: str, tmp_path: Path) -> None:
    theirs(case, tmp_path / "theirs")
    mine = tiny_model(CASES[case][0])
    load_adapter(mine, tmp_path / "theirs")
    again = tiny_model(CASES[case][0])
    add_lora(again, lora_config(mine))
    with torch.no_grad():
        for _, parameter in lora_parameters(again):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_adapter(again, tmp_path / "ours")
    loaded = peft.PeftModel.from_pretrained(tiny_model(CASES[case][0]), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(loaded), logits(again), rtol=0, atol=1e-5)
    back = tiny_model(CASES[case][0])
    load_adapter(back, tmp_path / "ours")
    assert torch.equal(logits(back), logits(again))


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_longer_vocabulary_of_peft_is_read_with_its_rows(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path / "base")
    base = tiny_model(family)
    base.resize_token_embeddings(264)
    base.name_or_path = str(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(tmp_path / "base")
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "adapter")
    assert any("embed_tokens" in key for key in load_file(tmp_path / "adapter" / WEIGHTS))
    mine = tiny_model(family)
    load_adapter(mine, tmp_path / "adapter")
    assert mine.config.vocab_size == 264
    torch.testing.assert_close(logits(mine), logits(model), rtol=0, atol=1e-5)
    load_adapter(mine, tmp_path / "adapter")  # the rows are there now
    torch.testing.assert_close(logits(mine), logits(model), rtol=0, atol=1e-5)


WEIGHTS = "adapter_model.safetensors"


def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    theirs("head", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    key = next(key for key in tensors if "lm_head" in key)
    tensors[key] = torch.cat((tensors[key], tensors[key][:, :3].repeat(1, 1)), dim=1)
    save_file(tensors, tmp_path / WEIGHTS)
    mine = tiny_model("llama")
    before = {name: id(parameter) for name, parameter in mine.named_parameters()}
    with pytest.raises(ArtifactError, match=r"lm_head\.weight has shape \[260, 67\], expected"):
        load_adapter(mine, tmp_path)
    assert before == {name: id(parameter) for name, parameter in mine.named_parameters()}
    del tensors[key]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ArtifactError, match=r"missing: lm_head\.weight"):
        load_adapter(mine, tmp_path)


def test_names_that_peft_would_read_in_another_way_are_not_written(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.vision_lm_head = nn.Linear(64, 8)
    add_lora(model, LoRAConfig(rank=4, targets=("q_proj",), modules_to_save=("lm_head",)))
    with pytest.raises(ArtifactError, match=r"PEFT would read 'lm_head'.*vision_lm_head too"):
        save_adapter(model, tmp_path)


def test_the_files_name_the_parts_as_peft_does(tmp_path: Path) -> None:
    model = tiny_model("llama")
    add_lora(
        model,
        LoRAConfig(rank=4, targets=("q_proj",), trainable_token_indices=(260, 261, 5)),
    )
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    rows = [260, 261, 5]
    assert config["trainable_token_indices"] == {"model.embed_tokens": rows, "lm_head": rows}
    ends = {key for key in load_file(tmp_path / WEIGHTS) if "lora" not in key}
    name = "token_adapter.trainable_tokens_delta"
    assert ends == {
        f"base_model.model.model.embed_tokens.{name}",
        f"base_model.model.lm_head.{name}",
    }
    base = tiny_model("llama")
    base.resize_token_embeddings(262)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "falcon", "gemma3"])
def test_a_table_that_trains_tied_is_read_by_peft_under_any_name(
    family: str, tmp_path: Path
) -> None:
    model = tiny_model(family)
    targets = tuple(LAYERS.get(family, ["q_proj"]))
    add_lora(model, LoRAConfig(rank=4, targets=targets, modules_to_save=("lm_head",)))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_adapter(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    back = tiny_model(family)
    load_adapter(back, tmp_path)
    assert torch.equal(logits(back), logits(model))

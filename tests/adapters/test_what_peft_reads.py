"""PEFT reads an adapter saved here as what it is, on models whose experts have common names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.utils import transformers_weight_conversion as theirs

from graftlm._compat import peft_experts
from graftlm.adapters import add_lora, lora_parameters
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.models import load_model

IDS = torch.arange(1, 25).view(2, 12)
COMMON = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "Glm4MoeConfig": {"head_dim": 16, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "DeepseekV3Config": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
    "Qwen2MoeConfig": {"num_experts": 4, "shared_expert_intermediate_size": 32},
    "Ernie4_5_MoeConfig": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "Dots1Config": {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_shared_experts": 1},
}


def test_the_names_are_those_of_pefts_own_table() -> None:
    table = {kind: frozenset(names) for kind, names in theirs._MOE_TARGET_MODULE_MAPPING.items()}
    assert table == peft_experts.EXPERT_NAMES


@pytest.mark.parametrize("kind", list(MIXTURES))
@pytest.mark.parametrize(
    "settings",
    [{}, {"rank_pattern": {"down_proj": 6}, "alpha_pattern": {"up_proj": 3}, "dropout": 0.1}],
    ids=["plain", "patterns"],
)
def test_peft_says_what_the_adapter_says(
    kind: str, settings: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**(COMMON | MIXTURES[kind]))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    model, _ = load_model(tmp_path / "base", quantize=None)
    add_lora(model, LoRAConfig(**({"rank": 4, "alpha": 8} | settings)))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    save_adapter(model, tmp_path / "adapter", base_name=str(tmp_path / "base"))
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert ("target_parameters" in saved) == (kind != "Qwen2MoeConfig")  # PEFT leaves that one be
    with torch.no_grad():
        live = model.eval()(input_ids=IDS).logits
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        # PEFT looks for what a pattern matched among modules only.
        warnings.filterwarnings("ignore", message=".*did not match any targeted module.*")
        read = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(read(input_ids=IDS).logits, live, rtol=1e-4, atol=1e-4)
        again, _ = load_model(tmp_path / "base", quantize=None)
        load_adapter(again, tmp_path / "adapter")
        torch.testing.assert_close(again.eval()(input_ids=IDS).logits, live)

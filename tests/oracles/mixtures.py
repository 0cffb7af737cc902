"""Tiny mixtures of experts, no matrix of which is square: the layout of its factors is then known.

Rows and columns of the experts are multiples of 16, so that a block of NF4 crosses no expert.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

__all__ = ["BOTH", "LEAVES", "MIXTURES", "OWN_CODE", "tiny_mixture"]

BOTH = ("experts.gate_up_proj", "experts.down_proj")

COMMON = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 48,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 0,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
}
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", {"num_experts": 4, "shared_expert_intermediate_size": 32}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", {"num_experts": 4}),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **LATENT,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "glm4_moe": ("Glm4MoeConfig", {"n_routed_experts": 4, "first_k_dense_replace": 1}),
}
OWN_CODE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama4_text": (
        "Llama4TextConfig",
        {"num_local_experts": 4, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1},
    ),
    "longcat_flash": (
        "LongcatFlashConfig",
        {
            **LATENT,
            "qk_head_dim": 16,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "moe_topk": 2,
            "ffn_hidden_size": 48,
            "expert_ffn_hidden_size": 48,
            "num_layers": 2,
        },
    ),
    "jetmoe": ("JetMoeConfig", {"num_local_experts": 4, "kv_channels": 16}),
}
"""The kinds whose experts transformers computes by code of their own."""
LEAVES = {"jetmoe": ("input_linear.weight", "output_linear.weight")}
"""How `target_parameters` names the experts, where that is not `BOTH`."""


def tiny_mixture(kind: str, seed: int = 0) -> Any:
    """A random float32 model in evaluation mode, no weight or bias exactly zero or one."""
    name, own = (MIXTURES | OWN_CODE)[kind]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**COMMON | own)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()

"""The smallest model of each supported family: two layers, random weights, one config each.

Rows are multiples of 64 long: where a block crosses a row's end, bitsandbytes 0.50 decodes wrongly
on CPUs with AVX-512, so it could not serve as the oracle.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

__all__ = ["FAMILIES", "tiny_config", "tiny_model"]

COMMON = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mistral": ("MistralConfig", {}),
    "phi3": ("Phi3Config", {}),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", GEMMA),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 128},
    ),
    "opt": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "falcon": ("FalconConfig", {"alibi": False, "new_decoder_architecture": False}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def tiny_config(family: str) -> Any:
    """The transformers config of a family, tiny."""
    name, own = FAMILIES[family]
    common = {} if family == "gpt2" else COMMON
    common = {
        key: value for key, value in common.items() if family != "opt" or "key_value" not in key
    }
    tokens = {"vocab_size": 260, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 0}
    return getattr(transformers, name)(**(tokens | common | own))


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A random model of a family in evaluation mode, no weight or bias exactly zero or one."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(family), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    assert isinstance(model, nn.Module)
    return model.eval()

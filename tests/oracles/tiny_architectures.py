"""A tiny random model of every causal architecture that the installed transformers has.

Sizes are shrunk by the names that configs give them; what a name does not say stands in
`OVERRIDES`. Lists of one entry a layer are left to the config, which makes them from the number of
layers.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["architectures", "tiny_config", "tiny_model"]

LARGEST = 6_000_000
"""Parameters: what stays larger than this is not tiny."""

NAMES: dict[int, str] = {
    260: "vocab_size vocab_size_per_layer_input unpadded_vocab_size ngram_vocab_size_base "
    "decoder_vocab_size encoder_hash_byte_group_vocab pronunciation_vocab_size shape_vocab_size",
    64: "hidden_size n_embd d_model embedding_dim dim_model emb_dim embed_dim backbone_hidden_size "
    "attention_hidden_size lru_width word_embed_proj_dim embedding_size input_embedding_size "
    "output_embedding_size hidden_size_global out_hidden_size projector_input_dim "
    "projector_output_dim vision_output_dim ple_embed_dim cross_attention_hidden_size "
    "pronunciation_embed_dim shape_embed_dim rel_extent output_channels",
    96: "feed_forward_size",
    128: "intermediate_size n_inner d_inner dff dim_ff ffn_dim ffn_hidden_size decoder_ffn_dim "
    "encoder_ffn_dim dense_intermediate_size intermediate_size_mlp mlp_dim d_ff mamba_d_ssm "
    "shared_intermediate_size max_position_embeddings n_positions n_ctx max_seq_len context_length "
    "max_source_positions max_target_positions model_max_length n_ctx_orig "
    "original_max_position_embeddings mamba_d_inner floor_scale log_scaling_n_floor",
    4: "num_hidden_layers n_layer n_layers num_layers num_heads n_head n_heads "
    "n_routed_experts num_attention_heads num_experts num_local_experts moe_num_experts "
    "decoder_layers encoder_layers decoder_attention_heads encoder_attention_heads "
    "attention_heads num_decoder_layers num_encoder_layers num_decoder_attention_heads "
    "linear_num_value_heads num_encoder_attention_heads swa_num_attention_heads "
    "linear_num_heads mamba_n_heads mamba_num_heads n_mamba_heads num_blocks depth "
    "hc_lowrank zero_expert_num num_layers_per_stack split_ngram_parts",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_k "
    "moe_topk swa_num_key_value_heads linear_num_key_heads index_n_heads o_groups "
    "n_groups num_query_groups mamba_n_groups hc_mult hc_count num_global_layers",
    16: "head_dim attention_head_dim d_kv d_head dim_head attention_head_size "
    "qk_nope_head_dim v_head_dim kv_channels q_lora_rank kv_lora_rank "
    "linear_key_head_dim linear_value_head_dim linear_head_dim swa_head_dim "
    "index_head_dim global_head_dim query_pre_attn_scalar hidden_size_per_layer_input "
    "adapter_rank o_lora_rank mamba_head_dim mamba_d_head sliding_window "
    "sliding_window_size attention_window_size keep_window_size attention_chunk_size "
    "local_attention local_attention_window_len index_topk rotary_dim window_size "
    "chunk_size mamba_chunk_size mamba_d_state ssm_state_size state_size "
    "router_hidden_size num_random_blocks_size time_step_rank "
    "make_ngram_vocab_size_divisible_by index_block_size position_bias_num_buckets "
    "position_bias_max_distance dim_model_base",
    32: "moe_intermediate_size shared_expert_intermediate_size "
    "shared_experts_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size image_size",
}
SIZES: dict[str, int] = {name: size for size, names in NAMES.items() for name in names.split()}
SIZES |= {
    "qk_rope_head_dim": 8,
    "qk_head_dim": 24,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "laurel_rank": 8,
    "mamba_dt_rank": 8,
    "num_kv_shared_layers": 2,
    "patch_size": 8,
    "index_topk_blocks": 2,
    "max_window_layers": 2,
    "moe_layer_end_index": 3,
    "prompt_length": 4,
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "gemma3n_text": {"intermediate_size": 128, "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "xmod": {"default_language": "en_XX"},
    "falcon_mamba": {"state_size": 8},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 2, "use_mamba_kernels": False},
    "phi3": {"pad_token_id": 0},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 16},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 16},
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
    },
    "zamba": {
        "num_hidden_layers": 6,
        "attention_head_dim": 32,
        "mamba_dt_rank": 4,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_headdim": 32,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_ngroups": 1,
    },
    "nemotron_h": {"mamba_num_heads": 8, "layers_block_type": ["mamba", "moe", "attention", "mlp"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "axial_pos_embds_dim": [16, 48],
        "axial_pos_shape": [8, 16],
        "attn_layers": ["local", "local"],
        "is_decoder": True,
    },
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "head_dim": 32,
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "sliding_attention",
        ],
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "max_seq_len": 128,
    },
    "mllama": {"cross_attention_layers": [1, 3]},
    "phi4_multimodal": {"partial_rotary_factor": 1.0},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0]},
}


def architectures() -> dict[str, type]:
    """The config class of each causal architecture, by its model type."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return {config.model_type: config for config in MODEL_FOR_CAUSAL_LM_MAPPING}


def tiny_config(model_type: str) -> Any:
    """The transformers config of an architecture, tiny."""
    cls: Any = architectures()[model_type]
    return cls(**_shrunk(cls))


def _shrunk(cls: Any) -> dict[str, Any]:
    """What ``cls`` is called with: small sizes where its defaults are larger, in its parts too."""
    default = cls()
    defaults = default.to_dict()
    own: dict[str, Any] = {
        name: SIZES[name]
        for name, value in defaults.items()
        if name in SIZES and type(value) is int and value > SIZES[name]
    }
    if "qk_rope_head_dim" in defaults:  # latent attention: positions turn this part of a head
        own |= {name: 8 for name in ("head_dim",) if name in own}
        own |= {name: 4 for name in ("num_key_value_heads",) if name in own}
    if type(defaults.get("vocab_size")) is int:
        ids = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 0}
        own |= {name: value for name, value in ids.items() if name in defaults}
    for name in getattr(cls, "sub_configs", None) or ():
        part = getattr(default, name, None)
        if part is not None:
            own[name] = {"model_type": part.model_type} | _shrunk(type(part))
    return own | OVERRIDES.get(cls.model_type, {})


def tiny_model(model_type: str, seed: int = 0) -> Any:
    """A random float32 model in evaluation mode, no weight or bias exactly zero or one.

    Raises:
        ValueError: the architecture stays large.
    """
    from transformers import AutoModelForCausalLM

    config = tiny_config(model_type)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"still has {size / 1e6:.0f} million parameters")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()

"""A random Llama in bfloat16 shards, with a byte-level tokenizer, for the loading benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ONE_BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
"""Sizes of a Llama of 1.1 billion weights (TinyLlama's)."""


def write_llama(folder: Path, layers_a_shard: int, alike: bool = False, **sizes: Any) -> None:
    """Write the model, a shard at a time.

    Args:
        folder: an empty folder.
        layers_a_shard: decoder layers in each file; what is in no layer has a file of its own.
        alike: whether all layers get the same numbers, which is quicker to make.
        sizes: of `LlamaConfig`; the vocabulary is 32,000, embeddings are untied.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from graftlm.planning.baseline_memory import byte_tokenizer

    config = LlamaConfig(
        vocab_size=32000,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        **sizes,
    )
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in LlamaForCausalLM(config).named_parameters()}
    torch.manual_seed(0)
    files: dict[str, list[str]] = {}
    for name in shapes:
        layer = _layer(name)
        number = "rest" if layer is None else f"{layer // layers_a_shard:05}"
        files.setdefault(f"model-{number}.safetensors", []).append(name)
    made: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}
    for file, names in files.items():
        tensors = {}
        for name in names:
            kind = name.replace(f".{_layer(name)}.", ".0.", 1) if alike else name
            if kind not in made:
                made[kind] = (torch.randn(shapes[name]) * 0.02).bfloat16()
            # A file keeps no two names of one tensor.
            tensors[name] = made[kind].clone() if alike else made.pop(kind)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def write_tiny_llama(folder: Path) -> None:
    """Write a random two-layer Llama over bytes, in float32, for benchmarks of many short runs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from graftlm.planning.baseline_memory import byte_tokenizer

    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _layer(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None

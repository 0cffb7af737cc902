"""Layers over 4-bit weights, low-rank adapters around any base, fused elementwise layers."""

from __future__ import annotations

from graftlm.layers.gated_mlp import GatedMLP
from graftlm.layers.int8_rows import Int8Embedding, Int8Output, Int8Rows
from graftlm.layers.lora_embedding import LoRAEmbedding
from graftlm.layers.lora_linear import LoRALinear
from graftlm.layers.nf4_linear import NF4Linear
from graftlm.layers.output_linear import OutputLinear
from graftlm.layers.rms_norm import RMSNorm

__all__ = [
    "GatedMLP",
    "Int8Embedding",
    "Int8Output",
    "Int8Rows",
    "LoRAEmbedding",
    "LoRALinear",
    "NF4Linear",
    "OutputLinear",
    "RMSNorm",
]

"""Linear layers over 4-bit weights, and low-rank adapters around any base layer."""

from __future__ import annotations

from graftlm.layers.lora_embedding import LoRAEmbedding
from graftlm.layers.lora_linear import LoRALinear
from graftlm.layers.nf4_linear import NF4Linear

__all__ = ["LoRAEmbedding", "LoRALinear", "NF4Linear"]

"""Low-rank adapters on a model: add, switch, count, merge, remove."""

from __future__ import annotations

from graftlm.adapters import (  # these register the variants
    dora,
    lora_embedding,
    lora_experts,
    lora_linear,
    lora_router,
)
from graftlm.adapters.adapted import adapter_names, lora_modules, lora_parameters
from graftlm.adapters.adapter import adapter_classes
from graftlm.adapters.combine import combine_adapters
from graftlm.adapters.inject import activate, active_adapters, add_lora, disable_adapters, remove
from graftlm.adapters.merge_aware import original_weights, train_through_merge
from graftlm.adapters.merging import MergeReport, merge_adapters, merge_in_place
from graftlm.adapters.report import LoRAReport, count_parameters
from graftlm.adapters.settings import lora_config

__all__ = [
    "LoRAReport",
    "MergeReport",
    "activate",
    "active_adapters",
    "adapter_classes",
    "adapter_names",
    "add_lora",
    "combine_adapters",
    "count_parameters",
    "disable_adapters",
    "dora",
    "lora_config",
    "lora_embedding",
    "lora_experts",
    "lora_linear",
    "lora_modules",
    "lora_parameters",
    "lora_router",
    "merge_adapters",
    "merge_in_place",
    "original_weights",
    "remove",
    "train_through_merge",
]

"""Low-rank adapters on a model: put in, switch off, count, fold in, take out."""

from __future__ import annotations

from graftlm.adapters.inject import add_lora, disable_adapters, lora_parameters, remove
from graftlm.adapters.merging import MergeReport, merge, merge_adapters
from graftlm.adapters.report import LoRAReport, count_parameters
from graftlm.adapters.settings import lora_config
from graftlm.adapters.targets import lora_modules

__all__ = [
    "LoRAReport",
    "MergeReport",
    "add_lora",
    "count_parameters",
    "disable_adapters",
    "lora_config",
    "lora_modules",
    "lora_parameters",
    "merge",
    "merge_adapters",
    "remove",
]

"""The extension points of the package: the contracts, and the functions that register code.

    from graftlm.extend import FrozenWeight, register_format

Names are imported on first use, so that importing this module is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.adapters.adapter import Adapter, register_adapter
    from graftlm.adapters.lora_embedding import LoRAEmbedding
    from graftlm.adapters.lora_linear import LoRALinear
    from graftlm.data.batch import Batch, collate
    from graftlm.data.example import Example
    from graftlm.exporting.target import ExportTarget, Proof, register_target
    from graftlm.frozen.checkpoint_format import CheckpointFormat
    from graftlm.frozen.formats import format_named, formats, register_format
    from graftlm.frozen.weight import FrozenWeight, ScaledRows, StorageSettings, WeightSettings
    from graftlm.kernels.operator import Case, Operator, implement, operators, withdraw
    from graftlm.training.active_run import ActiveRun
    from graftlm.training.batching import micro_batches
    from graftlm.training.hooks.hook import Hook
    from graftlm.training.next_token import next_token_loss
    from graftlm.training.objective import Objective, register_objective

__all__ = [
    "ActiveRun",
    "Adapter",
    "Batch",
    "Case",
    "CheckpointFormat",
    "Example",
    "ExportTarget",
    "FrozenWeight",
    "Hook",
    "LoRAEmbedding",
    "LoRALinear",
    "Objective",
    "Operator",
    "Proof",
    "ScaledRows",
    "StorageSettings",
    "WeightSettings",
    "collate",
    "format_named",
    "formats",
    "implement",
    "micro_batches",
    "next_token_loss",
    "operators",
    "register_adapter",
    "register_format",
    "register_objective",
    "register_target",
    "withdraw",
]

_HOME = {
    "ActiveRun": "training.active_run",
    "Adapter": "adapters.adapter",
    "Batch": "data.batch",
    "Case": "kernels.operator",
    "CheckpointFormat": "frozen.checkpoint_format",
    "Example": "data.example",
    "ExportTarget": "exporting.target",
    "FrozenWeight": "frozen.weight",
    "Hook": "training.hooks.hook",
    "LoRAEmbedding": "adapters.lora_embedding",
    "LoRALinear": "adapters.lora_linear",
    "Objective": "training.objective",
    "Operator": "kernels.operator",
    "Proof": "exporting.target",
    "ScaledRows": "frozen.weight",
    "StorageSettings": "frozen.weight",
    "WeightSettings": "frozen.weight",
    "collate": "data.batch",
    "format_named": "frozen.formats",
    "formats": "frozen.formats",
    "implement": "kernels.operator",
    "micro_batches": "training.batching",
    "next_token_loss": "training.next_token",
    "operators": "kernels.operator",
    "register_adapter": "adapters.adapter",
    "register_format": "frozen.formats",
    "register_objective": "training.objective",
    "register_target": "exporting.target",
    "withdraw": "kernels.operator",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graftlm.extend' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graftlm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

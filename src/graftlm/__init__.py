"""Fine-tune a language model by LoRA or QLoRA on the hardware you have.

    model, tokenizer = graftlm.load_model("gemma-3-270m", quantize="nf4")
    report = graftlm.add_lora(model, graftlm.LoRAConfig(rank=16, alpha=32))
    result = graftlm.train(model, tokenizer, "rows.jsonl", out="runs/first")

Names are imported on first use, so that importing the package is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.adapters import add_lora, disable_adapters, merge
    from graftlm.adapters.peft_format import load_adapter, save_adapter
    from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, TrainConfig
    from graftlm.exporting.merge import merge_to_folder
    from graftlm.frozen import nf4
    from graftlm.models import load_model, save_model
    from graftlm.planning.decide import run
    from graftlm.training.evaluation import evaluate
    from graftlm.training.train import train

__all__ = [
    "DataConfig",
    "LoRAConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "add_lora",
    "disable_adapters",
    "evaluate",
    "load_adapter",
    "load_model",
    "merge",
    "merge_to_folder",
    "nf4",
    "run",
    "save_adapter",
    "save_model",
    "train",
]

__version__ = "0.1.0"

_HOME = {
    "DataConfig": "config",
    "LoRAConfig": "config",
    "ModelConfig": "config",
    "RunConfig": "config",
    "TrainConfig": "config",
    "add_lora": "adapters",
    "disable_adapters": "adapters",
    "evaluate": "training.evaluation",
    "load_adapter": "adapters.peft_format",
    "load_model": "models",
    "merge": "adapters",
    "merge_to_folder": "exporting.merge",
    "run": "planning.decide",
    "save_adapter": "adapters.peft_format",
    "save_model": "models",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    if name == "nf4":
        return importlib.import_module("graftlm.frozen.nf4")
    if name not in _HOME:
        raise AttributeError(f"module 'graftlm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graftlm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Fine-tune a language model by LoRA or QLoRA on the hardware you have.

    model, tokenizer = graftlm.load_model("gemma-3-270m", quantize="nf4")
    report = graftlm.add_lora(model, graftlm.LoRAConfig(rank=16, alpha=32))
    result = graftlm.train(model, tokenizer, "rows.jsonl", out="runs/first")

Names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm import nf4
    from graftlm.artifacts import load_adapter, merge_to_folder, save_adapter
    from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, TrainConfig
    from graftlm.lora import add_lora, disable_adapters, merge
    from graftlm.models import load_model, save_model
    from graftlm.train.evaluation import evaluate
    from graftlm.train.job import run, train

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
    "add_lora": "lora",
    "disable_adapters": "lora",
    "evaluate": "train.evaluation",
    "load_adapter": "artifacts",
    "load_model": "models",
    "merge": "lora",
    "merge_to_folder": "artifacts",
    "run": "train.job",
    "save_adapter": "artifacts",
    "save_model": "models",
}
_SUBPACKAGES = {"nf4", "train"}


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"graftlm.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'graftlm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graftlm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

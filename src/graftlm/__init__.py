"""Fine-tune a language model by LoRA or QLoRA on the hardware you have.

    model, tokenizer = graftlm.load_model("gemma-3-270m", quantize="nf4")
    report = graftlm.add_lora(model, graftlm.LoRAConfig(rank=16, alpha=32))
    result = graftlm.train(model, tokenizer, rows, out="runs/first")
    answer = graftlm.generate(model, "Two pizzas for Lan", tokenizer=tokenizer)

or, by the names of the commands, `plan`, `check`, `run` (train), `compare`, `merge`, `export`.

Names are imported on first use, so that importing the package is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.adapters import add_lora, disable_adapters, merge_in_place
    from graftlm.adapters.peft_format import load_adapter, save_adapter
    from graftlm.api.check import check
    from graftlm.api.compare import compare
    from graftlm.api.generate import generate
    from graftlm.api.merge import merge
    from graftlm.api.plan import plan
    from graftlm.api.run import run, train
    from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, TrainConfig
    from graftlm.exporting.merge import merge_to_folder
    from graftlm.exporting.target import export
    from graftlm.frozen import nf4
    from graftlm.models import load_model, save_model
    from graftlm.training.evaluation import evaluate
    from graftlm.training.hooks import Hook

__all__ = [
    "DataConfig",
    "Hook",
    "LoRAConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "add_lora",
    "check",
    "compare",
    "disable_adapters",
    "evaluate",
    "export",
    "generate",
    "load_adapter",
    "load_model",
    "merge",
    "merge_in_place",
    "merge_to_folder",
    "nf4",
    "plan",
    "run",
    "save_adapter",
    "save_model",
    "train",
]

__version__ = "0.1.0"

_HOME = {
    "DataConfig": "config",
    "Hook": "training.hooks",
    "LoRAConfig": "config",
    "ModelConfig": "config",
    "RunConfig": "config",
    "TrainConfig": "config",
    "add_lora": "adapters",
    "check": "api.check",
    "compare": "api.compare",
    "disable_adapters": "adapters",
    "evaluate": "training.evaluation",
    "export": "exporting.target",
    "generate": "api.generate",
    "load_adapter": "adapters.peft_format",
    "load_model": "models",
    "merge": "api.merge",
    "merge_in_place": "adapters",
    "merge_to_folder": "exporting.merge",
    "plan": "api.plan",
    "run": "api.run",
    "save_adapter": "adapters.peft_format",
    "save_model": "models",
    "train": "api.run",
}


def __getattr__(name: str) -> Any:
    if name == "nf4":
        return importlib.import_module("graftlm.frozen.nf4")
    if name not in _HOME:
        raise AttributeError(f"module 'graftlm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graftlm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

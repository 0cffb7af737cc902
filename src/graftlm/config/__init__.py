"""Settings: what a user may write, what a run records, and code that reads both."""

from __future__ import annotations

from graftlm.config.checking import shown, validate
from graftlm.config.reading import load_run_config, parse_override
from graftlm.config.run import ResolvedConfig, recorded_config
from graftlm.config.settings import (
    DataConfig,
    Embeddings,
    LoRAConfig,
    Method,
    ModelConfig,
    RunConfig,
    Settings,
    TrainConfig,
    contradictions,
    require_complete,
)

__all__ = [
    "DataConfig",
    "Embeddings",
    "LoRAConfig",
    "Method",
    "ModelConfig",
    "ResolvedConfig",
    "RunConfig",
    "Settings",
    "TrainConfig",
    "contradictions",
    "load_run_config",
    "parse_override",
    "recorded_config",
    "require_complete",
    "shown",
    "validate",
]

"""Settings: what a user may write, what a run records, and code that reads both."""

from __future__ import annotations

from graftlm.config.adapter_settings import LoRAConfig
from graftlm.config.checking import shown, validate
from graftlm.config.contradictions import contradictions, require_complete
from graftlm.config.overrides import overrides
from graftlm.config.reading import load_run_config, parse_override
from graftlm.config.run import ResolvedConfig, recorded_config
from graftlm.config.settings import (
    DataConfig,
    Embeddings,
    Method,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from graftlm.config.sizes import format_size, most_bytes, parse_size
from graftlm.config.values import Settings

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
    "format_size",
    "load_run_config",
    "most_bytes",
    "overrides",
    "parse_override",
    "parse_size",
    "recorded_config",
    "require_complete",
    "shown",
    "validate",
]

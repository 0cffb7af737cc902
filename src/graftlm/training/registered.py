"""Refuses names in the settings that nothing is registered under, before any work."""

from __future__ import annotations

from graftlm.adapters.adapter import adapter_classes
from graftlm.config import RunConfig
from graftlm.exporting.target import target_named
from graftlm.frozen.formats import format_named
from graftlm.training.objective import objective_named

__all__ = ["require_registered"]


def require_registered(config: RunConfig) -> None:
    """Look up each name.

    Raises:
        ConfigError: a weight format, a variant, an objective or a form of export is unknown.
    """
    format_named(config.model.weight_format)
    adapter_classes(config.lora.variant)
    objective_named(config.train.objective)
    for name in config.train.export_to:
        target_named(name)

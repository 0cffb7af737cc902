"""Formats that other tools read."""

from __future__ import annotations

from graftlm.artifacts.adapter_folder import (
    adapter_folder,
    base_of,
    recorded_settings,
    trained_on,
)
from graftlm.artifacts.merge import merge_to_folder
from graftlm.artifacts.peft import load_adapter, save_adapter
from graftlm.artifacts.tokenizer import adapter_tokenizer

__all__ = [
    "adapter_folder",
    "adapter_tokenizer",
    "base_of",
    "load_adapter",
    "merge_to_folder",
    "recorded_settings",
    "save_adapter",
    "trained_on",
]

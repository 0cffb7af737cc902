"""Formats that other tools read."""

from __future__ import annotations

from graftlm.artifacts.adapter_folder import adapter_folder, base_of, trained_on
from graftlm.artifacts.merge import merge_to_folder
from graftlm.artifacts.peft import load_adapter, save_adapter

__all__ = [
    "adapter_folder",
    "base_of",
    "load_adapter",
    "merge_to_folder",
    "save_adapter",
    "trained_on",
]

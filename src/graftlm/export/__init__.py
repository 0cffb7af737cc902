"""Export: folders and files that other tools load."""

from __future__ import annotations

from graftlm.export import peft_folder, transformers_folder  # these register themselves
from graftlm.export.merge import merge_to_folder
from graftlm.export.target import ExportTarget, Proof, export, register_target

__all__ = [
    "ExportTarget",
    "Proof",
    "export",
    "merge_to_folder",
    "peft_folder",
    "register_target",
    "transformers_folder",
]

"""Export: folders and files that other tools load."""

from __future__ import annotations

from graftlm.exporting import peft_folder, transformers_folder  # these register themselves
from graftlm.exporting.merge import merge_to_folder
from graftlm.exporting.target import ExportTarget, Proof, export, register_target

__all__ = [
    "ExportTarget",
    "Proof",
    "export",
    "merge_to_folder",
    "peft_folder",
    "register_target",
    "transformers_folder",
]

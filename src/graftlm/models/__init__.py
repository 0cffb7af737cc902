"""Opening models, in 4 bits if requested, and writing them.

Names are imported on first use, so that looking up a model name does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.models.generate import Answer, generate_text
    from graftlm.models.load import load_model, load_tokenizer, load_weights
    from graftlm.models.quantize import quantize_folder
    from graftlm.models.replaced import AssemblyReport, assembly_report
    from graftlm.models.save import save_model
    from graftlm.models.source import ResolvedModel, resolve
    from graftlm.models.stored_tokenizer import StoredTokenizer

__all__ = [
    "Answer",
    "AssemblyReport",
    "ResolvedModel",
    "StoredTokenizer",
    "assembly_report",
    "generate_text",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "quantize_folder",
    "resolve",
    "save_model",
]

_HOME = {
    "Answer": "generate",
    "AssemblyReport": "replaced",
    "assembly_report": "replaced",
    "ResolvedModel": "source",
    "StoredTokenizer": "stored_tokenizer",
    "generate_text": "generate",
    "load_model": "load",
    "load_tokenizer": "load",
    "load_weights": "load",
    "quantize_folder": "quantize",
    "resolve": "source",
    "save_model": "save",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graftlm.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graftlm.models.{_HOME[name]}"), name)

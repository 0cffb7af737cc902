"""Opening models, in 4 bits where asked, and writing them."""

from __future__ import annotations

from graftlm.models.assembly_report import AssemblyReport, assembly_report
from graftlm.models.generate import Answer, generate_text
from graftlm.models.load import load_model, load_tokenizer, load_weights
from graftlm.models.quantize import quantize_folder
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

"""Opening models, in 4 bits where asked, and writing them."""

from __future__ import annotations

from graftlm.models.generate import Answer, generate_text
from graftlm.models.load import load_model, load_tokenizer
from graftlm.models.quantize import quantize_folder
from graftlm.models.save import save_model
from graftlm.models.source import ResolvedModel, resolve

__all__ = [
    "Answer",
    "ResolvedModel",
    "generate_text",
    "load_model",
    "load_tokenizer",
    "quantize_folder",
    "resolve",
    "save_model",
]

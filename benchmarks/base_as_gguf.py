"""A base model as one GGUF file, for llama.cpp."""

from __future__ import annotations

from pathlib import Path

from graftlm.adapters import add_lora
from graftlm.adapters.peft_format import save_adapter
from graftlm.config import LoRAConfig
from graftlm.exporting.gguf.merged_file import write_base
from graftlm.models import load_model


def base_as_gguf(name: str, folder: Path, quantization: str = "q4_0") -> Path:
    """Write ``name`` into ``folder``; the export reads the base's name from an adapter."""
    model, tokenizer = load_model(name, quantize=None, device="cpu")
    add_lora(model, LoRAConfig(rank=1))
    save_adapter(model, folder / "adapter", base_name=name, tokenizer=tokenizer)
    del model
    file = folder / f"{quantization}.gguf"
    write_base(file, folder / "adapter", name, quantization)
    return file

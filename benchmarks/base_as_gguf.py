"""A base model as one GGUF file: the export of an adapter that changes nothing."""

from __future__ import annotations

from pathlib import Path

from graftlm.adapters import add_lora
from graftlm.adapters.peft_format import save_adapter
from graftlm.config import LoRAConfig
from graftlm.exporting import export
from graftlm.models import load_model


def base_as_gguf(name: str, folder: Path, quantization: str = "q4_0") -> Path:
    """Write ``name`` in ``folder``; a new adapter's B is zero, so the weights are the base's."""
    model, tokenizer = load_model(name, quantize=None, device="cpu")
    add_lora(model, LoRAConfig(rank=1))
    save_adapter(model, folder / "adapter", base_name=name, tokenizer=tokenizer)
    del model
    file = folder / f"{quantization}.gguf"
    export(folder / "adapter", "gguf", file, quantization=quantization)
    return file

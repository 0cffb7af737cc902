"""Opens a model with an adapter, as the adapter's run held it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graftlm.adapters.adapter import DEFAULT
from graftlm.adapters.adapter_folder import recorded_settings, trained_on
from graftlm.adapters.adapter_tokenizer import adapter_tokenizer
from graftlm.adapters.merge_aware import apply_merge_aware
from graftlm.adapters.peft_format import load_adapter
from graftlm.config import ModelConfig
from graftlm.models import load_model

__all__ = ["open_model"]


def open_model(
    model: str, adapter: str | None, quantize: str | None, device: str, name: str = DEFAULT
) -> tuple[Any, Any]:
    """Load ``model`` with ``adapter``, if given, and the tokenizer of its training.

    Args:
        model: the base model.
        adapter: a PEFT adapter folder or a run folder.
        quantize: the weight format of the base, ``none`` for as it is; by default as the adapter
            was trained.
        device: ``auto`` or the name of a device.
        name: the adapter's name in the model.
    """
    as_it_is = quantize == "none"
    if quantize is None and adapter is not None:
        quantize = trained_on(Path(adapter))
    run = None if as_it_is else recorded_settings(model, adapter)
    held = ModelConfig() if run is None else run.model
    loaded, tokenizer = load_model(
        model,
        quantize=None if quantize in ("none", "original") else quantize,
        block_size=held.block_size,
        double_quant=held.double_quant,
        embeddings="int8" if held.embeddings == "int8" else "keep",
        device=device,
    )
    if adapter is not None:
        load_adapter(loaded, adapter, name=name)
        if run is not None:
            apply_merge_aware(loaded, run)
        tokenizer = adapter_tokenizer(adapter, tokenizer)
    return loaded.train(False), tokenizer

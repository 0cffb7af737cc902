"""Merges an adapter into its base on disk, tensor by tensor; the result is a plain model.

    onto "original":  W' = W + s · B A                  the checkpoint's own 16- or 32-bit weight
    onto a format:    W' = dequantize(quantize(W)) + s · B A    exactly what a QLoRA run trained

In the second form, every linear layer that was in the weight format during training is written
dequantised, with or without an adapter. Embeddings that were in 8 bits are copied from the
checkpoint. The result has the tensor names of the base's checkpoint, loads with plain transformers,
and contains the chat template that the adapter was trained with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from graftlm.adapters.adapter_folder import base_of
from graftlm.adapters.adapter_tokenizer import adapter_tokenizer, brings_tokenizer
from graftlm.exporting.merge_plan import Merge, prepare_merge
from graftlm.exporting.model_card import card_of_adapter, write_card
from graftlm.exporting.proof import require_template
from graftlm.files import atomic_folder, require_free_space
from graftlm.models import resolve
from graftlm.models.load import tokenizer_in
from graftlm.models.save import save_tokenizer
from graftlm.models.saved_config import write_config
from graftlm.models.shard_writer import ShardWriter, copy_companions
from graftlm.system import return_freed_memory

__all__ = ["merge_to_folder"]

SMALL_FILES_BYTES = 100_000_000


def merge_to_folder(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    onto: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> dict[str, Any]:
    """Merge the adapter at ``adapter`` into its base and write a plain transformers folder.

    Peak memory is one tensor in float32. W' is computed in float32 and rounded once.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        out: the folder to create.
        base: the base model; by default the one the adapter names.
        onto: ``"original"`` or a weight format such as ``"nf4"``. The default is the format of the
            base (with the run's settings) if the adapter is in the folder of a QLoRA run or its
            base is quantised; otherwise ``"original"``.
        dtype: type of the written weights; by default the base's. With float32 the merge is exact.
        max_shard_bytes: size of one file of weights; a gigabyte by default.

    Returns:
        ``base``, ``onto``, ``out``, ``modules`` merged, ``bytes`` written, the ``largest_rounding``
        of a merged weight, ``update_kept``: the share of the update that remains after rounding,
        ``weights_changed``: the share of the weights with an update whose stored value changed,
        whether the output head was ``untied`` from the embeddings, and the layers ``left_out``
        because their update has no effect.

    Raises:
        ConfigError: ``onto`` is unknown, or the base does not have these weights.
        ArtifactError: the adapter does not fit the base.
        ResourceError: the disk is too small, or ``out`` exists or cannot be written.
    """
    return_freed_memory()
    name = base or base_of(adapter)
    source = resolve(name)
    merge = prepare_merge(adapter, source.path, name, onto, dtype)
    require_free_space(out, merge.predicted_bytes() + SMALL_FILES_BYTES, "Merging")
    with atomic_folder(out) as folder:
        with ShardWriter(folder, max_shard_bytes) as writer:
            for key, tensor in merge.tensors():
                writer.add(key, tensor)
        copy_companions(source.path, folder)
        if brings_tokenizer(adapter):
            tokenizer = adapter_tokenizer(adapter, tokenizer_in(source.path))
            save_tokenizer(tokenizer, folder)
            require_template(folder, tokenizer)
        write_config(folder, _edited_config(source.path, merge), source.path)
        kept = {"share of the update that survives rounding": merge.rounding.update_kept}
        write_card(folder, card_of_adapter(Path(adapter), name, "merged", kept))
    return {
        "base": name,
        "onto": merge.onto,
        "out": str(out),
        "modules": len(merge.deltas),
        "bytes": writer.total_bytes,
        "largest_rounding": merge.rounding.largest,
        "update_kept": merge.rounding.update_kept,
        "weights_changed": merge.rounding.weights_changed,
        "untied": merge.untied_head is not None,
        "left_out": list(merge.left_out),
    }


def _edited_config(folder: Path, merge: Merge) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        part.pop("quantization_config", None)
        if merge.untied_head is not None:
            part["tie_word_embeddings"] = False
        if merge.rows and "vocab_size" in part:
            part["vocab_size"] = merge.rows
        if merge.dtype is not None:
            name = "torch_dtype" if "torch_dtype" in part else "dtype"
            part[name] = str(merge.dtype).removeprefix("torch.")
    return config

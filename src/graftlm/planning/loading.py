"""The additional memory of loading: the tensor that is being converted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.config import RunConfig
from graftlm.errors import ModelError
from graftlm.models.safetensors_file import Checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

__all__ = ["loading_bytes"]


def loading_bytes(
    folder: Path | None, architecture: PretrainedConfig, dtype: torch.dtype, config: RunConfig
) -> int:
    """Additional bytes while the largest tensor that changes its type is read.

    A tensor that keeps its type is read directly into the model. A tensor that changes its type, or
    is quantised, exists twice for a moment.
    """
    qlora, int8 = config.method == "qlora", config.model.embeddings == "int8"
    sizes = _stored(folder)
    if sizes is None:
        text: Any = architecture.get_text_config()
        largest = text.vocab_size * text.hidden_size
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        known = int(dtype.itemsize * max(inner * text.hidden_size, 0 if qlora else largest))
        return max(known, _before_int8(architecture, dtype) if int8 else 0)
    vocabulary = architecture.get_text_config().vocab_size

    def changes(kind: torch.dtype, shape: tuple[int, ...]) -> bool:
        """Embeddings and heads keep their type when the rest is quantised."""
        return kind != dtype or (qlora and len(shape) == 2 and shape[0] != vocabulary)

    changing = [math.prod(shape) * kind.itemsize for kind, shape in sizes if changes(kind, shape)]
    return max(*changing, _before_int8(architecture, dtype) if int8 else 0, 0)


def _before_int8(architecture: PretrainedConfig, dtype: torch.dtype) -> int:
    """Additional bytes of table and head while the first of them is quantised."""
    text: Any = architecture.get_text_config()
    numel = int(text.vocab_size * text.hidden_size)
    tied = getattr(architecture, "tie_word_embeddings", False)
    # If untied: both originals and the codes of the head; later only both codes.
    return numel * (dtype.itemsize if tied else 2 * dtype.itemsize - 1)


def _stored(folder: Path | None) -> list[tuple[torch.dtype, tuple[int, ...]]] | None:
    if folder is None:
        return None
    try:
        checkpoint = Checkpoint(folder)
    except ModelError:  # only the config exists: a plan before the download
        return None
    return [(entry.dtype, tuple(entry.shape)) for entry in checkpoint.values()]

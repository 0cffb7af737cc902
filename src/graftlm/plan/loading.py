"""What loading takes on top of the loaded model: the tensor in flight."""

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
    """Bytes in flight while the largest tensor arrives: as stored, where it is not kept so.

    A tensor whose type stays is read into its place. One that changes its type, or is quantised,
    exists twice for a moment.
    """
    qlora, int8 = config.method == "qlora", config.model.embeddings == "int8"
    sizes = _stored(folder)
    if sizes is None:
        text: Any = architecture.get_text_config()
        largest = text.vocab_size * text.hidden_size
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        return int(
            dtype.itemsize * max(inner * text.hidden_size, 0 if qlora and not int8 else largest)
        )
    vocabulary = architecture.get_text_config().vocab_size

    def changes(kind: torch.dtype, shape: tuple[int, ...]) -> bool:
        """Embeddings and heads keep their type when the rest is quantised, unless in 8 bits."""
        if kind != dtype:
            return True
        return len(shape) == 2 and (int8 if shape[0] == vocabulary else qlora)

    changing = [math.prod(shape) * kind.itemsize for kind, shape in sizes if changes(kind, shape)]
    if int8:  # a table is loaded in `dtype` before it becomes codes
        numel = vocabulary * architecture.get_text_config().hidden_size
        changing.append(numel * dtype.itemsize)
    return max(changing, default=0)


def _stored(folder: Path | None) -> list[tuple[torch.dtype, tuple[int, ...]]] | None:
    if folder is None:
        return None
    try:
        checkpoint = Checkpoint(folder)
    except ModelError:  # only the config is here: a plan before the download
        return None
    return [(entry.dtype, tuple(entry.shape)) for entry in checkpoint.values()]

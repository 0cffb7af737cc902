"""A few rows of a model's embedding table, read from its files without loading the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from graftlm.models.safetensors_file import Checkpoint

__all__ = ["embedding_rows"]

_TABLES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
    "embedding.weight",
)


def embedding_rows(folder: Path, ids: Sequence[int]) -> npt.NDArray[np.float32] | None:
    """The rows of these token ids, (len(ids), hidden size).

    Returns:
        The rows; ``None`` if the name of the table in the checkpoint is unknown, or if the table
        has no such rows.

    Raises:
        ModelError: the folder holds no readable checkpoint.
    """
    checkpoint = Checkpoint(folder)
    names = [name for name in checkpoint if name.endswith(_TABLES)]
    if len(names) != 1:
        return None
    table = checkpoint.map(names[0])
    if table.ndim != 2 or not table.is_floating_point() or max(ids, default=0) >= table.shape[0]:
        return None
    rows: npt.NDArray[np.float32] = table[torch.tensor(ids)].float().numpy()
    return rows
